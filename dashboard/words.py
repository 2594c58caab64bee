"""Text for people: what users and models wrote, made inert, and the product's labels in words.

Questions, answers, notes and names come from anybody, so they are shown as they are and never interpreted: markup is
escaped, and characters that would reorder or hide text are written out. Knows nothing of Streamlit.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from fastrm_monitor.dashboard.queries import CaseRow, CaseView
from fastrm_monitor.scoring.policy import REASONS

VERDICT_NAMES = {
    "correct": "Correct",
    "wrong": "Wrong",
    "not_grounded": "Not grounded",
    "unsure": "Unsure",
    "undone": "Undone",
}
"""Verdicts as buttons and histories name them."""

VERDICT_MEANINGS = {
    "correct": "The answer is right.",
    "wrong": "The answer is wrong.",
    "not_grounded": "Right or wrong, the heatmap is not where the answer lies.",
    "unsure": "It cannot be told from the picture.",
}
"""What a reviewer says with each verdict."""

TAG_NAMES = {
    "wrong_object": "Wrong object",
    "wrong_count": "Wrong count",
    "hallucinated": "Hallucinated",
    "ambiguous_question": "Ambiguous question",
    "bad_picture": "Bad picture",
}
"""Tags that have a key, as buttons name them; any other word may be one, see `tags_in`."""

LOSS_NAMES = {"skipped": "Not scored", "dropped": "Not stored", "failed": "Failures"}
LOSS_REASONS = {
    ("skipped", "no_image"): "no picture in the request",
    ("dropped", "queue_full"): "the queue was full",
    ("dropped", "too_large"): "too large for the queue",
    ("dropped", "store_error"): "the store did not take it",
    ("dropped", "shutdown"): "the process ended first",
    ("dropped", "case_error"): "the case could not be made",
    ("failed", "capture"): "reading the hidden states",
    ("failed", "score"): "scoring",
    ("failed", "record"): "handing over",
    ("failed", "telemetry"): "telemetry",
    ("failed", "store"): "writing to the store",
    ("failed", "case"): "making the case",
    ("failed", "picture"): "reading a picture",
}
"""Reasons and stages in words; others are shown by their label."""

MOST_SHOWN = 20_000
"""Characters of one text that a page shows."""

_TAG = re.compile(r"(?<!\S)#(\w[\w-]{0,63})")
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji need them
_SHORT_REASONS = {
    "low_confidence": "low confidence",
    "low_token_probability": "low token probability",
    "high_map_entropy": "scattered map",
}


def inert(text: str) -> str:
    """HTML that shows `text` and does nothing else.

    Direction is kept inside an isolated element. Control and format characters other than line breaks and tabs, such
    as right-to-left overrides and zero-width spaces, are written out as marks like U+202E. Of a very long text the end
    is left out, which is said: every mark is an element, and a million of them would stop the browser.
    """
    shown = "".join(_shown(character) for character in text[:MOST_SHOWN])
    more = len(text) - MOST_SHOWN
    rest = f'<span class="frm-mark">{more:,} more characters are stored; an export has them</span>' if more > 0 else ""
    return f'<bdi dir="auto">{shown}</bdi>{rest}'


def plain(text: str) -> str:
    """`text` for cells that are no HTML: one line, with the same marks."""
    return " ".join("".join(f"[U+{ord(c):04X}]" if _hidden(c) else c for c in text).split())


def _hidden(character: str) -> bool:
    kept = character in "\n\t" or character in _JOINERS
    return not kept and unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")


def _shown(character: str) -> str:
    if not _hidden(character):
        return html.escape(character)
    name = unicodedata.name(character, "control character").lower()
    return f'<span class="frm-mark" title="{html.escape(name)}">U+{ord(character):04X}</span>'


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[int] = ()) -> str:
    """An HTML table of texts, all made inert; the columns `numbers` are set to the right."""
    return table_of_html(heads, [[inert(cell) for cell in row] for row in rows], numbers)


def table_of_html(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[int] = ()) -> str:
    """The same of cells that are HTML already; whoever calls has made what is foreign in them inert."""
    align = ['class="frm-number"' if column in numbers else "" for column in range(len(heads))]
    head = "".join(f"<th {align[n]}>{html.escape(name)}</th>" for n, name in enumerate(heads))
    body = "".join(
        "<tr>" + "".join(f"<td {align[n]}>{cell}</td>" for n, cell in enumerate(row)) + "</tr>" for row in rows
    )
    header = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<table class="frm-table">{header}<tbody>{body}</tbody></table>'


def confidence(value: float | None, calibrated: bool) -> str:
    """A calibrated confidence is a probability and shown in percent; any other score is shown as a plain number."""
    if value is None:
        return "–"
    return f"{value:.0%}" if calibrated else f"{value:.2f}"


def percent(value: float | None) -> str:
    """A share with one decimal."""
    return "–" if value is None else f"{value:.1%}"


def tags_in(note: str) -> tuple[str, list[str]]:
    """A note without its tags, and the tags: words that begin with #, in small letters, each once."""
    tags = [found.lower() for found in _TAG.findall(note)]
    return " ".join(_TAG.sub("", note).split()), list(dict.fromkeys(tags))


def amount(number: int, most: int) -> str:
    """A number of things that were counted to one above `most`."""
    return f"{most:,}+" if number > most else f"{number:,}"


def reason(view: CaseView) -> str:
    """Why the case is here, as a sentence; plain text that may hold a foreign label."""
    if view.flagged:
        why = REASONS.get(view.reason or "", "")
        if not why:
            return f"Flagged: {_label(view.reason)}." if view.reason else "Flagged."
        return f"Flagged because {why}{'' if view.threshold is None else f' ({view.threshold:.2f})'}."
    if view.sampled:
        return f"Not flagged; drawn into the random sample of {view.sample_rate:.3g} of all answers."
    return "Not flagged."


def short_reason(row: CaseRow) -> str:
    """Why the case is here, in two or three words."""
    if row.flagged:
        return _SHORT_REASONS.get(row.reason or "", _label(row.reason))
    return "random sample"


def statement(method: str, target: float, confidence: float | None) -> str:
    """What a threshold was chosen for, in words; plain text that may hold a foreign label."""
    if method == "flag-rate":
        return f"{target:.1%} of the traffic is flagged"
    sure = "" if confidence is None else f", {confidence:.0%} confidence"
    if method == "risk":
        return f"at most {target:.1%} of the unflagged answers are wrong{sure}"
    if method == "precision":
        return f"at least {target:.1%} of the flagged answers are wrong{sure}"
    return _label(method)


def how_chosen(chosen: Mapping[str, Any]) -> str:
    """How a published threshold was chosen, from what is stored with it; anything may be stored there."""
    try:
        sure = chosen.get("confidence")
        said = statement(str(chosen["method"]), float(chosen["target"]), None if sure is None else float(sure))
    except (AttributeError, KeyError, TypeError, ValueError):
        return "not said"
    return f"{said[:1].upper()}{said[1:]}"


def loss_reason(name: str, label: str) -> str:
    """A reason or stage of `traffic` in words."""
    return LOSS_REASONS.get((name, label), _label(label))


def trace_link(template: str | None, trace_id: str, span_id: str | None) -> str | None:
    """The address of a trace; None without a template (`FASTRM_TRACE_URL`), or where it lacks a span that is wanted."""
    if template is None or ("{span_id}" in template and span_id is None):
        return None
    return template.replace("{trace_id}", quote(trace_id, safe="")).replace("{span_id}", quote(span_id or "", safe=""))


def _label(text: str | None) -> str:
    return (text or "no reason given").replace("_", " ")


def moment(time: datetime) -> str:
    """A time in UTC, to the minute."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def age(time: datetime, now: datetime | None = None) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = ((now or datetime.now(UTC)) - time).total_seconds()
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"


def share(part: float, whole: float) -> str:
    """A part of a whole in percent."""
    return percent(part / whole if whole else None)
