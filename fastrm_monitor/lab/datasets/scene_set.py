"""Scenes as a data set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.lab.datasets.scenes import KINDS, SIZE, Scene, scenes, sequence

if TYPE_CHECKING:
    from PIL.Image import Image

TRAIN_SEED, VALIDATION_SEED, TEST_SEED, DEMO_SEED = 101, 102, 103, 104
"""Seeds of the picture sequences; the embedded model itself was trained on seed 1. No picture is in two of them."""


class SceneSet:
    """The first `pictures` pictures of each kind, with up to `questions` questions each.

    Args:
        kinds: names of `KINDS`.
        pictures: of each kind.
        seed: of the picture sequence.
        questions: most questions a picture.

    Raises:
        DataError: a kind is unknown.
    """

    def __init__(self, kinds: list[str], pictures: int, seed: int = TEST_SEED, questions: int = 4) -> None:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown or not kinds:
            raise DataError(f"There is no kind of scene '{', '.join(unknown)}': known are {', '.join(KINDS)}.")
        self.name = f"scenes-{'+'.join(kinds)}-seed{seed}-{pictures}x{questions}"
        self._samples = [
            sample
            for kind in kinds
            for scene in scenes(kind, seed, pictures, questions)
            for sample in scene_samples(scene)
        ]

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def right(self, sample: Sample, answer: str) -> bool:
        """Word for word, whatever the case."""
        return answer.strip().lower() == sample.answers[0]

    def origin(self, picture_id: str) -> str:
        """Its sequence, seed and place there: pictures of two kinds that share them are drawn by the same numbers."""
        kind, place = picture_id.split("-", 1)
        return f"{sequence(kind)}-{place}"


def scene_samples(scene: Scene) -> list[Sample]:
    """The questions of one scene."""
    return [
        Sample(
            id=f"{scene.id}-{number}",
            picture_id=scene.id,
            picture=partial(_picture, scene.pixels),
            question=question.text,
            answers=(question.answer,),
            group=question.family,
            boxes=tuple(
                (left / SIZE, top / SIZE, right / SIZE, bottom / SIZE)
                for left, top, right, bottom in (scene.objects[n].box for n in question.asked)
            ),
        )
        for number, question in enumerate(scene.questions)
    ]


def _picture(pixels: np.ndarray) -> Image:
    from PIL import Image

    return Image.fromarray(pixels)
