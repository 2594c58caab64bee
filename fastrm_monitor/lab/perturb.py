"""The perturbation test: does the answer rest on the patches that a map calls relevant?

Patches are masked in the picture itself, before the processor and the vision tower, with the picture's mean colour.
Where a patch lies on the picture follows from the region that its map covers, which undoes resizing, cropping and
padding; its edges are rounded to whole pixels of the picture, so where the processor resizes, its filter mixes up to a
pixel or two of colour over a masked patch's edge. Patches on padding show nothing of the picture and do not count.

Masked with the most relevant patches first ("positive") a faithful map loses the right answer early, with the least
relevant first ("negative", `inverse`) late; a random order lies between. It asks the model and knows no proxy.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import Progress

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.datasets.base import Dataset, Sample
from fastrm_monitor.lab.failures import failures, mean_of
from fastrm_monitor.lab.intervals import Draws, interval, rate, significance
from fastrm_monitor.lab.labels import Labels
from fastrm_monitor.lab.sampling import spread
from fastrm_monitor.types import RelevanceMap

if TYPE_CHECKING:
    from PIL.Image import Image

LEVELS = (0.0, 0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
"""Shares of the patches that are masked."""
ORDERS = ("proxy", "teacher", "random", "inverse")
"""In which they are masked: most relevant first by either map, at random, least relevant first by the proxy's map."""
DIFFERENCES = (("proxy", "random"), ("teacher", "random"), ("proxy", "inverse"))
"""Areas under the accuracy that are compared; below 0 the first order finds what the answer rests on."""

_Job = tuple[tuple[int, int | slice, int], "Image"]  # place in the (S, orders, levels) results, and the picture


def perturbation(
    asker: Asker,
    dataset: Dataset,
    labels: Labels,
    maps: Mapping[str, Sequence[RelevanceMap]],
    *,
    limit: int = 200,
    seed: int = 0,
    batch: int = 64,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Mask, ask, and compare; and see on what failing answers rest.

    A question counts only for `changed` and `failures` where nobody knows of one of its answers whether it is right,
    see `_judged`.

    Args:
        asker: of the model.
        dataset: that the labels were made of.
        labels: of its questions.
        maps: "proxy" and "teacher", one map a labelled question.
        limit: questions that are masked, evenly spread over the labels.
        seed: of the random order, and of how ties are broken.
        batch: prompts at once.
        progress: shows the answers.

    Returns:
        `questions` and `pictures` of the accuracy, `levels`; `accuracy` and `changed` (how often the answer is another
        than without a mask), for each order one `{n, rate, ci95}` a level; `area` under the accuracy, `{n, mean, ci95}`
        for each order; `difference` of areas, e.g. "proxy - random": `{difference, ci95, p}`, paired; `groups`, by kind
        of question `n`, and the same `changed` and `area`; `failures`, see `lab.failures`, of all labelled questions.
        Intervals over pictures, None where there are too few.

    Raises:
        DataError: there is nothing to ask or to judge, or the data set is not that of the labels.
    """
    rows = spread(len(labels), limit)
    if not rows:
        raise DataError(f"There is no question of {dataset.name} to mask patches for.")
    samples = _samples(dataset, [labels.facts[row].id for row in rows])
    right, changed = _ask(asker, dataset, samples, rows, maps, seed, batch, progress)
    draws = Draws([one.picture_id for one in samples])
    judged = _judged(right)
    if not judged.any():
        raise DataError(f"Of no masked question of {dataset.name} it is known whether all its answers are right.")
    right[~judged] = np.nan  # in no order, else their areas would be of other questions
    area = np.trapezoid(right, LEVELS, axis=2)  # (S, orders)
    groups = np.array([one.group for one in samples])
    early = LEVELS.index(0.25)
    return {
        "questions": int(judged.sum()),
        "pictures": draws.pictures_of(judged),
        "levels": list(LEVELS),
        "accuracy": _rates(right, draws, judged),
        "changed": _rates(changed, draws),
        "area": _areas(area, draws),
        "difference": {
            f"{one} - {other}": _gap(area[:, ORDERS.index(one)] - area[:, ORDERS.index(other)], draws)
            for one, other in DIFFERENCES
        },
        "groups": {
            kind: {
                "n": int((judged & (groups == kind)).sum()),
                "changed": _rates(changed, draws, groups == kind),
                "area": _areas(area, draws, groups == kind),
            }
            for kind in sorted(set(groups.tolist()))
        },
        "failures": failures(labels, maps, dict(zip(rows, changed[:, 0, early].tolist(), strict=True))),
    }


def patch_boxes(grid: RelevanceMap, size: tuple[int, int]) -> np.ndarray:
    """Where the patches lie on a picture.

    Args:
        grid: any map of the picture.
        size: (width, height) of the picture in pixels.

    Returns:
        Int (gh * gw, 4), left, top, right, bottom in pixels, row by row; of no area for a patch outside the picture.
    """
    rows, columns = grid.values.shape
    left, top, right, bottom = grid.region
    width, height = size
    x = (width * np.linspace(left, right, columns + 1)).round().clip(0, width).astype(int)
    y = (height * np.linspace(top, bottom, rows + 1)).round().clip(0, height).astype(int)
    tops, lefts = (one.ravel() for one in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    return np.stack([x[lefts], y[tops], x[lefts + 1], y[tops + 1]], axis=1)


def masking_orders(proxy: np.ndarray, teacher: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The patches in the order of each of `ORDERS`, int (orders, N); equally relevant ones in random order.

    Args:
        proxy: float (gh, gw).
        teacher: likewise.
        rng: draws the random order.
    """
    chance, ties = rng.permutation(proxy.size), rng.permutation(proxy.size)

    def falling(values: np.ndarray) -> np.ndarray:
        return ties[np.argsort(-values.ravel()[ties], kind="stable")]

    return np.stack([falling(proxy), falling(teacher), chance, falling(-proxy)])


def _samples(dataset: Dataset, ids: Sequence[str]) -> list[Sample]:
    wanted = set(ids)
    found = {sample.id: sample for sample in dataset if sample.id in wanted}
    if missing := wanted - set(found):
        raise DataError(f"{dataset.name} has no question '{min(missing)}' that the labels have: label this data set.")
    return [found[own] for own in ids]


def _ask(
    asker: Asker,
    dataset: Dataset,
    samples: Sequence[Sample],
    rows: Sequence[int],
    maps: Mapping[str, Sequence[RelevanceMap]],
    seed: int,
    batch: int,
    progress: Progress | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Whether the answers are right, and whether they changed, float (S, orders, levels) of 0 and 1.

    NaN where nobody knows whether an answer is right.
    """
    shape = (len(samples), len(ORDERS), len(LEVELS))
    right, texts = np.zeros(shape), np.empty(shape, object)
    bar = progress or Progress(disable=True)
    total = len(samples) * (2 + len(ORDERS) * (len(LEVELS) - 2))
    task = bar.add_task(f"masking {dataset.name}", total=total)
    jobs = (
        job
        for place, (sample, row) in enumerate(zip(samples, rows, strict=True))
        for job in _jobs(place, sample, maps["proxy"][row], maps["teacher"][row], seed)
    )
    while chunk := list(islice(jobs, batch)):
        asked = [samples[where[0]] for where, _ in chunk]
        answers = asker.answer(asker.inputs([picture for _, picture in chunk], [one.question for one in asked]))
        for (where, _), sample, said in zip(chunk, asked, answers, strict=True):
            known = dataset.right(sample, said.text)
            right[where] = np.nan if known is None else known
            texts[where] = said.text.strip().lower()
        bar.advance(task, len(chunk))
    return right, (texts != texts[:, :, :1]).astype(float)


def _judged(right: np.ndarray) -> np.ndarray:
    """Of which questions it is known of every answer whether it is right, bool (S,).

    Where only a wrong answer is known, the unmasked answer counts as wrong and another under a mask cannot be judged.
    Were that one answer left out, each level and order would be a mean over other questions, and accuracy would rise
    and fall with who is left; so the question is left out of all of them, which keeps the orders paired. One whose
    answer no mask changes stays, wrong throughout: it moves no difference away from 0.
    """
    found: np.ndarray = np.isfinite(right).all((1, 2))
    return found


def _jobs(place: int, sample: Sample, proxy: RelevanceMap, teacher: RelevanceMap, seed: int) -> Iterator[_Job]:
    """The masked pictures of one question; those that all orders share, of no patch and of all, once."""
    from PIL import Image

    picture = np.asarray(sample.picture().convert("RGB"))
    boxes = patch_boxes(proxy, (picture.shape[1], picture.shape[0]))
    shown = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    color = picture.mean((0, 1)).round().astype(np.uint8)
    orders = masking_orders(proxy.values, teacher.values, np.random.default_rng([seed, zlib.crc32(sample.id.encode())]))
    last = len(LEVELS) - 1
    yield (place, slice(None), 0), Image.fromarray(picture)
    for number, order in enumerate(orders):
        order, masked, done = order[shown[order]], picture.copy(), 0
        for level, share in enumerate(LEVELS[1:], start=1):
            count = round(share * len(order))
            for left, top, right, bottom in boxes[order[done:count]]:
                masked[top:bottom, left:right] = color
            done = count
            if level < last:
                yield (place, number, level), Image.fromarray(masked.copy())
            elif number == 0:
                yield (place, slice(None), level), Image.fromarray(masked)


def _rates(values: np.ndarray, draws: Draws, where: np.ndarray | None = None) -> dict[str, Any]:
    return {
        order: [rate(values[:, number, level], draws, where) for level in range(len(LEVELS))]
        for number, order in enumerate(ORDERS)
    }


def _areas(area: np.ndarray, draws: Draws, where: np.ndarray | None = None) -> dict[str, Any]:
    return {order: mean_of(area[:, number], draws, where) for number, order in enumerate(ORDERS)}


def _gap(values: np.ndarray, draws: Draws) -> dict[str, Any]:
    known = np.isfinite(values)
    drawn, enough = draws.means(values, known), draws.enough_of(known)
    return {
        "difference": float(values[known].mean()),
        "ci95": interval(drawn) if enough else None,
        "p": significance(drawn) if enough else None,
    }
