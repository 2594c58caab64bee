"""What a closer look found, in sentences. Answers in them are foreign text: show them inert."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastrm_monitor.lab.closer import Look, Masked

_MOST = 60  # characters of an answer in a sentence

_CONCLUSIONS = {
    (True, False): "So the answer rests on what the heatmap shows.",
    (False, True): "So the answer rests on something else than the heatmap shows.",
    (
        False,
        False,
    ): "Either half is enough, or the answer does not rest on the picture: this says nothing about the map.",
    (True, True): "The answer needs both halves: this says nothing about the map.",
}
"""By whether the answer changed with the most, and with the least relevant half masked."""


def brief(answer: str) -> str:
    """An answer on one line, cut to what a sentence can hold."""
    line = " ".join(answer.split())
    return line if len(line) <= _MOST else f"{line[: _MOST - 1]}…"


def same_answer(stored: str, again: str) -> bool:
    """Whether an answer is the stored one, or its beginning where the new one was cut short."""
    one, other = (" ".join(text.lower().split()) for text in (stored, again))
    return one.startswith(other) if other else not one


def masking(look: Look) -> list[str]:
    """What masking half of the patches did to the answer, and what follows."""
    half = {one.order: one for one in look.masked if one.share == 0.5}
    most, least = half["most"], half["least"]
    return [
        f"With the most relevant half of the picture masked the model {_says(most)}; with the least relevant half "
        f"masked it {_says(least)}.",
        _CONCLUSIONS[most.changed, least.changed],
    ]


def _says(one: Masked) -> str:
    return f"{'answers' if one.changed else 'still answers'} “{brief(one.answer)}”"


def masked_rows(look: Look) -> list[tuple[str, str, str]]:
    """(share, answer with the most relevant patches masked, with the least relevant ones), by rising share."""
    rows = []
    for share in sorted({one.share for one in look.masked}):
        cells = {
            one.order: f"{brief(one.answer)} ({'changed' if one.changed else 'same'})"
            for one in look.masked
            if one.share == share
        }
        rows.append((f"{share:.0%}", cells["most"], cells["least"]))
    return rows


def agreement(look: Look) -> str:
    """How well both maps agree."""
    order = "One of the maps is even, so their order cannot be compared"
    if look.correlation is not None:
        order = f"Rank correlation of the two maps {look.correlation:.2f} (1 is the same order, 0 none)"
    return (
        f"{order}; overlap (IoU) of the patches that they call relevant {look.overlap:.2f}, the proxy's from 0.50 and "
        f"the teacher's from {look.label_threshold:.2f}."
    )
