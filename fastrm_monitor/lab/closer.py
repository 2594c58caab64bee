"""A closer look at one stored answer, outside of serving: the teacher's map, and what masking does to the answer.

The same road as labels and the perturbation test take, for one question, step by step, so that whoever waits can be
told how far it is. Knows an asker, pictures and maps; no store and no page.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.fidelity import overlaps, rank_correlations
from fastrm_monitor.lab.perturb import ORDERS, masking_orders, patch_boxes
from fastrm_monitor.lab.teacher import Teacher
from fastrm_monitor.scoring.patches import PatchLayout, PictureInput
from fastrm_monitor.types import RelevanceMap

if TYPE_CHECKING:
    from PIL.Image import Image

MASKED = (0.25, 0.5, 0.75)
"""Shares of the patches that are masked."""
STEPS = 2 + 2 * len(MASKED)
"""How often `look_closer` says how far it is."""

Order = Literal["most", "least"]
_ORDERS: dict[Order, str] = {"most": "proxy", "least": "inverse"}


@dataclass(frozen=True)
class Masked:
    """What the model answered with a share of the patches masked.

    Attributes:
        order: "most" or "least" relevant patches first, by the proxy's map.
        share: of the patches.
        answer: the answer.
        changed: whether it is another than without a mask.
    """

    order: Order
    share: float
    answer: str
    changed: bool


@dataclass(frozen=True, eq=False)
class Look:
    """What a closer look found.

    Attributes:
        answer: what the model says now, without a mask.
        maps: the teacher's, one for each picture; 0 and 1 are the least and the most relevant patch of the request.
        correlation: Spearman's, of both maps over all patches; None where one of them is even.
        overlap: intersection over union of the patches that both call relevant, the proxy from 0.5 on, the teacher
            from `label_threshold` on.
        label_threshold: as given.
        masked: the most relevant patches first, then the least relevant ones, each by rising share.
    """

    answer: str
    maps: tuple[RelevanceMap, ...]
    correlation: float | None
    overlap: float
    label_threshold: float
    masked: tuple[Masked, ...]


def look_closer(
    asker: Asker,
    layout: PatchLayout,
    question: str,
    pictures: Sequence[Image],
    sizes: Sequence[tuple[int, int]],
    maps: Sequence[np.ndarray],
    *,
    label_threshold: float = 0.3,
    seed: int = 0,
) -> Generator[str, None, Look]:
    """Explain an answer with the teacher and ask again with patches masked.

    Patches are masked with their picture's mean colour, see `lab.perturb`; those on padding do not count. Equally
    relevant ones go in random order.

    Args:
        asker: of the model that answered.
        layout: of its patches.
        question: that was answered.
        pictures: the request's, in prompt order; smaller copies will do.
        sizes: (width, height) of the originals in pixels.
        maps: the proxy's, float (gh, gw) for each picture.
        label_threshold: the teacher's relevance from which a patch counts as relevant.
        seed: of the random order.

    Yields:
        `STEPS` times, before each step, what comes now.

    Returns:
        What was found.

    Raises:
        DataError: the model makes other grids of these pictures than the maps have.
        ModelError: the teacher cannot explain this model.
    """
    yield "asking again"
    answer = asker.ask(pictures, question)
    yield "the teacher's map"
    taught = _taught(asker, layout, question, pictures, sizes)
    teacher_maps = [one.values for one in taught]
    if _shapes(teacher_maps) != _shapes(maps):
        raise DataError(
            f"The stored maps have {_shapes(maps)} patches and this model makes {_shapes(teacher_maps)}: "
            "the case is another model's."
        )
    proxy, teacher = (np.concatenate([one.ravel() for one in ones]) for ones in (maps, teacher_maps))
    orders = masking_orders(proxy, teacher, np.random.default_rng(seed))
    masked = []
    for order, name in _ORDERS.items():
        for share in MASKED:
            yield f"masking the {order} relevant {share:.0%}"
            hidden = _hidden(pictures, taught, orders[ORDERS.index(name)], share)
            said = asker.ask(hidden, question)
            masked.append(Masked(order, share, said, _plain(said) != _plain(answer)))
    correlation = float(rank_correlations([proxy], [teacher])[0])
    return Look(
        answer,
        tuple(taught),
        correlation if np.isfinite(correlation) else None,
        float(overlaps([proxy], [teacher], label_threshold)[0]),
        label_threshold,
        tuple(masked),
    )


def _plain(answer: str) -> str:
    return " ".join(answer.lower().split())


def _shapes(maps: Sequence[np.ndarray]) -> str:
    return " and ".join(f"{one.shape[0]} x {one.shape[1]}" for one in maps)


def _taught(
    asker: Asker, layout: PatchLayout, question: str, pictures: Sequence[Image], sizes: Sequence[tuple[int, int]]
) -> list[RelevanceMap]:
    prompt = asker.prompt(question, len(pictures))
    inputs: Any = asker.processor(images=list(pictures), text=prompt, return_tensors="pt").to(asker.model.device)
    explained = Teacher(asker.model).explain(inputs)
    relevance = explained.relevance[0][explained.image[0]].cpu().numpy()  # (N,) in token order
    grids = layout.grids(len(relevance), [PictureInput(size) for size in sizes])
    starts = np.cumsum([0, *(grid.length for grid in grids)])
    return [grid.arrange(relevance[start : start + grid.length]) for grid, start in zip(grids, starts, strict=False)]


def _hidden(pictures: Sequence[Image], grids: Sequence[RelevanceMap], order: np.ndarray, share: float) -> list[Image]:
    """The pictures with the first patches of an order masked, counted over those that show something of a picture."""
    from PIL import Image

    pixels = [np.array(picture.convert("RGB")) for picture in pictures]
    means = [one.mean((0, 1)).round().astype(np.uint8) for one in pixels]
    boxes = [
        (number, *box)
        for number, (grid, one) in enumerate(zip(grids, pixels, strict=True))
        for box in patch_boxes(grid, (one.shape[1], one.shape[0])).tolist()
    ]
    shown = [boxes[patch] for patch in order if boxes[patch][1] < boxes[patch][3] and boxes[patch][2] < boxes[patch][4]]
    for number, left, top, right, bottom in shown[: round(share * len(shown))]:
        pixels[number][top:bottom, left:right] = means[number]
    return [Image.fromarray(one) for one in pixels]
