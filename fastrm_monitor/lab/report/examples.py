"""Answers with their pictures for the page: what the proxy and what the teacher say the answer rests on."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastrm_monitor.lab.datasets.base import Dataset
from fastrm_monitor.lab.distill import arrange, predict, teacher_maps
from fastrm_monitor.lab.labels import Labels
from fastrm_monitor.overlay import overlay
from fastrm_monitor.scoring.checkpoint import ProxyFolder
from fastrm_monitor.scoring.entropy import spatial_entropy
from fastrm_monitor.scoring.patches import PatchLayout

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE = 224
"""Longest side of a picture in the page, in pixels."""


def gather(
    dataset: Dataset, labels: Labels, chosen: Sequence[Mapping[str, Any]], folder: ProxyFolder, layout: PatchLayout
) -> list[dict[str, Any]]:
    """Some labelled answers for the page.

    Args:
        dataset: that the labels were made of.
        labels: of the data set.
        chosen: `row` and `confidence` of each, as `judge_set` gives them.
        folder: the product's proxy.
        layout: of the model's patches.

    Returns:
        For each `question`, `answer`, `right`, `confidence`, `entropy`, and `picture`, `proxy` and `teacher` as data
        URLs.
    """
    rows = [one["row"] for one in chosen]
    wanted = {labels.facts[row].id for row in rows}
    samples = {sample.id: sample for sample in dataset if sample.id in wanted}
    proxy = arrange(predict(folder.proxy, labels, rows), labels, rows, layout)
    teacher = arrange(teacher_maps(labels, rows), labels, rows, layout)
    found = []
    for one, ours, theirs in zip(chosen, proxy, teacher, strict=True):
        facts = labels.facts[one["row"]]
        if facts.id not in samples:
            continue
        sample = samples[facts.id]
        picture = sample.picture()
        picture.thumbnail((_SIDE, _SIDE))
        found.append(
            {
                "question": sample.question,
                "answer": facts.answer,
                "right": facts.right,
                "confidence": one["confidence"],
                "entropy": spatial_entropy(ours.values),
                "picture": _url(picture),
                "proxy": _url(overlay(picture, ours.values, ours.region)),
                "teacher": _url(overlay(picture, theirs.values, theirs.region)),
            }
        )
    return found


def _url(picture: Image) -> str:
    written = io.BytesIO()
    picture.convert("RGB").save(written, "PNG")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
