"""What a data set is to the lab: samples, and whether an answer to one is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fastrm_monitor.types import Region

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Sample:
    """One question about one picture.

    Attributes:
        id: of the question, unique in the data set.
        picture_id: of the picture; splits and intervals go by it.
        picture: loads the picture as RGB.
        question: as a user would type it.
        answers: the reference answers (VQAv2 has ten).
        group: the kind of question; scores are reported pooled and by group.
        boxes: where the objects lie that the right answer rests on, as fractions of the picture; empty when unknown.
    """

    id: str
    picture_id: str
    picture: Callable[[], Image] = field(repr=False)
    question: str
    answers: tuple[str, ...]
    group: str
    boxes: tuple[Region, ...] = ()


class Dataset(Protocol):
    """A sequence of samples with its own rule of what is right."""

    @property
    def name(self) -> str:
        """Short name for reports and cache keys; says everything that changes the samples."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...

    def right(self, sample: Sample, answer: str) -> bool | None:
        """Whether `answer` counts as right; None when nobody knows."""


@runtime_checkable
class Traced(Protocol):
    """A data set that knows which of its pictures other data sets may have too, be it under another condition."""

    def origin(self, picture_id: str) -> str:
        """What a picture was made of: the same in every data set that has it, another for every other picture."""
