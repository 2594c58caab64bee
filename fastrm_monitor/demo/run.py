"""`fastrm-monitor demo`: real requests, served by the embedded model, watched, stored and shown."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fastrm_monitor.errors import FastRMError, MissingExtraError

if TYPE_CHECKING:
    from fastrm_monitor.lab.datasets.base import Sample
    from fastrm_monitor.types import Assessment

_BATCH = 8
_SHOWN = 8
_SAMPLE_RATE = 0.1
_MIX = {"natural": 0.75, "counter_prior": 0.15, "density": 0.05, "occlusion": 0.05}
"""Shares of the kinds of scene: mostly what the model knows, and some of what it will meet."""


def run_demo(output: Path, count: int, console: Console) -> str:
    """Serve `count` requests and print what was found.

    Args:
        output: folder for the store and the overlays; cases of an earlier run are kept.
        count: number of requests.
        console: where to print.

    Returns:
        The URL of the store.

    Raises:
        FastRMError: the folder cannot be written, or a library is missing.
    """
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError:
        raise MissingExtraError("The demo", "hf") from None
    from fastrm_monitor.demo import PROXY_FOLDER
    from fastrm_monitor.integrations.hf import Request, instrument
    from fastrm_monitor.lab.ask import EMBEDDED, Asker, load_lvlm

    overlays = output / "overlays"
    try:
        overlays.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FastRMError(f"The demo cannot write to {output}: {error.strerror}; pass --output.") from None
    url = f"sqlite:///{output / 'fastrm.db'}"
    began = time.perf_counter()
    console.print(f"Loading the embedded LVLM and its proxy; the store is {url}", markup=False)
    model, processor = load_lvlm(EMBEDDED)
    asker = Asker(model, processor)
    samples = _requests(count)
    finished: list[tuple[Sample, str, Assessment]] = []
    handle = instrument(
        model, processor, proxy=PROXY_FOLDER, store=url, model_name="embedded-llava", sample_rate=_SAMPLE_RATE
    )
    with handle, Progress(console=console) as bar:
        task = bar.add_task("serving requests", total=len(samples))
        for start in range(0, len(samples), _BATCH):
            part = samples[start : start + _BATCH]
            pictures = [sample.picture() for sample in part]
            inputs = asker.inputs(pictures, [sample.question for sample in part])
            requests = [
                Request(id=sample.id, question=sample.question, pictures=(picture,))
                for sample, picture in zip(part, pictures, strict=True)
            ]
            with handle.requests(requests):
                tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
            texts = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            finished += zip(part, (text.strip() for text in texts), handle.pop(), strict=True)
            bar.advance(task, len(part))
        handle.flush(30)
        counts = handle.monitor.counters.snapshot()
    _draw_overlays(overlays, finished)
    _print(console, finished, counts, url, overlays, time.perf_counter() - began)
    return url


def _requests(count: int) -> list[Sample]:
    """One question each about `count` pictures, the kinds mixed as traffic would mix them, seeded."""
    import numpy as np

    from fastrm_monitor.lab.datasets.scene_set import DEMO_SEED, scene_samples
    from fastrm_monitor.lab.datasets.scenes import make_scene

    rng = np.random.default_rng(DEMO_SEED)
    samples: list[Sample] = []
    index = 0
    while len(samples) < count:
        kind = str(rng.choice(list(_MIX), p=list(_MIX.values())))
        samples += scene_samples(make_scene(kind, DEMO_SEED, index, questions=1))
        index += 1
    return samples


def _draw_overlays(folder: Path, finished: list[tuple[Sample, str, Assessment]]) -> None:
    from fastrm_monitor.overlay import overlay

    for sample, _, assessment in finished:
        if assessment.flagged and assessment.maps:
            picture = sample.picture().resize((512, 512), resample=0)
            overlay(picture, assessment.maps[0].values, assessment.maps[0].region).save(folder / f"{sample.id}.png")


def _print(
    console: Console,
    finished: list[tuple[Sample, str, Assessment]],
    counts: dict[tuple[str, str], float],
    url: str,
    overlays: Path,
    seconds: float,
) -> None:
    table = Table(title="Least certain answers")
    for name in ("question", "answer", "truth", "confidence", "entropy", "flagged"):
        table.add_column(name)
    scored = [one for one in finished if one[2].confidence is not None]
    for sample, text, one in sorted(scored, key=lambda row: row[2].confidence or 0)[:_SHOWN]:
        table.add_row(
            sample.question,
            text,
            sample.answers[0] if text == sample.answers[0] else f"[red]{sample.answers[0]}[/red] (wrong)",
            f"{one.confidence:.2f}",
            f"{one.entropy:.2f}",
            "yes" if one.flagged else "no",
        )
    console.print(table)
    wrong = [one for sample, text, one in scored if text != sample.answers[0]]
    right = [one for sample, text, one in scored if text == sample.answers[0]]
    flagged = [one for _, _, one in scored if one.flagged]
    kept = sum(one.case_id is not None and not one.flagged for _, _, one in scored)
    stored = int(counts.get(("stored", ""), 0))
    console.print(
        f"{len(finished)} answers served, {len(scored)} scored, {len(flagged)} flagged, {kept} more in the random "
        f"sample; {stored} cases stored; {seconds:.0f} s"
    )
    console.print(
        f"flagged of wrong answers: {sum(one.flagged for one in wrong)}/{len(wrong)}; "
        f"of right answers: {sum(one.flagged for one in right)}/{len(right)}"
    )
    console.print(f"store: {url}", markup=False)
    console.print(f"overlays: {overlays}", markup=False)
    # As it can be pasted: the command may lie in a virtual environment, and paths may have blanks.
    command = "fastrm-monitor" if shutil.which("fastrm-monitor") else sys.argv[0]
    opening = shlex.join([command, "dashboard", "--store", url])
    console.print(f"dashboard: {opening}", soft_wrap=True, markup=False, highlight=False)
