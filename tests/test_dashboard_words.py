"""What users and models wrote is shown and never obeyed, and numbers are said in words that are true."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrm_monitor.dashboard import views, words
from fastrm_monitor.dashboard.queries import CaseRow, CaseView
from fastrm_monitor.records.models import VERDICTS, Case
from fastrm_monitor.scoring.policy import REASONS

NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)

MARKUP = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</bdi></div><iframe src='javascript:alert(1)'>",
    '"><svg/onload=alert(1)>',
    "&lt;script&gt;",
    "' style='position:fixed",
)


class Reader(HTMLParser):
    """Collects the tags, attributes and text that a browser would find."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


# --- foreign text --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", MARKUP)
def test_markup_is_text(text: str) -> None:
    """Markup in a question is read as the characters it is made of; no element and no attribute comes of it."""
    found = read(words.inert(text))
    assert found.tags == [("bdi", {"dir": "auto"})]
    assert found.text == text


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_is_inert(text: str) -> None:
    """Whatever the text, there are only our own two elements, and what they say is the text or its marks."""
    found = read(words.inert(text))
    assert {tag for tag, _ in found.tags} <= {"bdi", "span"}
    assert {name for tag, attributes in found.tags if tag == "span" for name in attributes} <= {"class", "title"}
    marks = {character for character in text if f"U+{ord(character):04X}" in found.text}
    assert found.text == "".join(f"U+{ord(c):04X}" if c in marks else c for c in text)


HIDDEN = {
    "right-to-left override": "\u202e",
    "left-to-right isolate": "\u2066",
    "zero-width space": "\u200b",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "tag letter": "\U000e0041",
    "line separator": "\u2028",
    "escape": "\x1b",
    "carriage return": "\r",
    "private use": "\ue000",
    "lone surrogate": "\ud800",
}


@pytest.mark.parametrize("character", HIDDEN.values(), ids=HIDDEN)
def test_what_reorders_or_hides_is_written_out(character: str) -> None:
    """Characters that reorder or hide text are shown by their number, on the page and in cells, and work no more."""
    mark = f"U+{ord(character):04X}"
    shown = words.inert(f"yes{character}on")
    assert character not in shown
    assert read(shown).text == f"yes{mark}on"
    assert words.plain(f"yes{character}on") == f"yes[{mark}]on"
    shown.encode()  # or the page could not be sent


def test_mark_names_its_character() -> None:
    """Who points at a mark reads the character's name."""
    assert ("span", {"class": "frm-mark", "title": "right-to-left override"}) in read(words.inert("\u202e")).tags


WRITING = ("naïve café", "بله، سبز است", "می\u200cخواهم", "क्\u200dष", "👩\u200d👧", "緑です", "two\nlines\tand a tab")


@pytest.mark.parametrize("text", WRITING)
def test_writing_of_all_kinds_stays(text: str) -> None:
    """Other scripts, the joiners that they and emoji need, line breaks and tabs are left as they are."""
    assert words.inert(text) == f'<bdi dir="auto">{text}</bdi>'


def test_cells_have_one_line() -> None:
    """A cell of a list has one line, however many the text has."""
    assert words.plain("  two\nlines\t and <b>tags</b> ") == "two lines and <b>tags</b>"


@pytest.mark.parametrize("text", MARKUP)
def test_table_cells_are_inert(text: str) -> None:
    """Cells of a table hold foreign text as text; numbers are marked as such."""
    found = read(words.table(("What", "Count"), [(text, "3")], numbers=(1,)))
    assert {tag for tag, _ in found.tags} == {"table", "thead", "tbody", "tr", "th", "td", "bdi"}
    assert found.text == f"WhatCount{text}3"
    assert [attributes for tag, attributes in found.tags if tag == "td"] == [{}, {"class": "frm-number"}]


@pytest.mark.parametrize("text", MARKUP)
def test_every_piece_of_page_is_inert(
    text: str, make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a case says in any of its fields, no piece of page makes an element or an attribute of it."""
    shown: list[str] = []
    monkeypatch.setattr(views, "st", SimpleNamespace(html=shown.append))

    def draw(foreign: str) -> list[tuple[str, list[str]]]:
        shown.clear()
        case, line = view(make_case, foreign), row(foreign)
        views.title(foreign, foreign)
        views.section(foreign, foreign)
        views.notice("error", foreign)
        views.empty("inbox", foreign, foreign)
        views.footer(foreign, foreign)
        for piece in (views.badges, views.confidence, views.dialogue):
            piece(case)
        views.row(line)
        return [(tag, sorted(attributes)) for tag, attributes in read("".join(shown)).tags]

    assert draw("harmless") == draw(text)
    assert read("".join(shown)).text.count(text) == 17


def view(make_case: Callable[..., Case], foreign: str | None = None, **changes: object) -> CaseView:
    """A case as the pages get it, with `foreign` in every field that others write."""
    fields = ("case_id", "question", "answer", "model", "server", "request_id", "proxy_version", "verdict", "reason")
    case = make_case(0, pictures=[], version=0, **{**dict.fromkeys(fields if foreign else (), foreign), **changes})
    plain = {name: getattr(case, name) for name in CaseView.__dataclass_fields__}
    return CaseView(**{**plain, "pictures": (), "reviews": ()})


def row(foreign: str = "?", **changes: object) -> CaseRow:
    values = {
        "case_id": "a",
        "created_at": NOW,
        "question": foreign,
        "answer": foreign,
        "confidence": 0.5,
        "calibrated": True,
        "entropy": None,
        "flagged": True,
        "reason": foreign,
        "verdict": None,
    }
    return CaseRow(**{**values, **changes})  # type: ignore[arg-type]


# --- reasons, numbers, times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Flagged because the calibrated confidence is below the threshold (0.60)."),
        ({"threshold": None}, "Flagged because the calibrated confidence is below the threshold."),
        ({"reason": "new_kind"}, "Flagged: new kind."),
        ({"reason": None}, "Flagged."),
        (
            {"flagged": False, "sampled": True, "sample_rate": 0.05},
            "Not flagged; drawn into the random sample of 0.05 of all answers.",
        ),
        ({"flagged": False, "sampled": False}, "Not flagged."),
    ],
)
def test_reason(make_case: Callable[..., Case], changes: dict[str, object], expected: str) -> None:
    """Why a case is here is a sentence with the threshold; a reason that is not known is shown by its label."""
    assert words.reason(view(make_case, **changes)) == expected


SHORT = {
    "low_confidence": "low confidence",
    "low_token_probability": "low token probability",
    "high_map_entropy": "scattered map",
}


def test_every_reason_of_the_policy_has_words(make_case: Callable[..., Case]) -> None:
    """Each reason that flags an answer has a sentence for the page and two or three words for lists."""
    assert {reason: words.short_reason(row(reason=reason)) for reason in REASONS} == SHORT
    for reason, sentence in REASONS.items():
        assert sentence in words.reason(view(make_case, reason=reason))


def test_short_reasons_of_other_cases() -> None:
    """A case without a reason, and one of the random sample, say so."""
    assert words.short_reason(row(reason=None)) == "no reason given"
    assert words.short_reason(row(flagged=False, reason=None)) == "random sample"


def test_every_verdict_has_a_name() -> None:
    """Each verdict that the store knows has a name; each that a reviewer can give has a meaning, a key and an icon."""
    from fastrm_monitor.dashboard.keys import VERDICTS as KEYS

    assert set(words.VERDICT_NAMES) == set(VERDICTS)
    assert set(VERDICTS) - {"undone"} == set(words.VERDICT_MEANINGS) == set(KEYS) == set(views.VERDICT_ICONS)
    assert list(KEYS.values()) == ["1", "2", "3", "4"]


def test_loss_reasons() -> None:
    """Losses are said in words, the same label differently by what was lost, an unknown one by its label."""
    assert words.loss_reason("dropped", "queue_full") == "the queue was full"
    assert words.loss_reason("failed", "store") == "writing to the store"
    assert words.loss_reason("dropped", "store") == "store"
    assert words.loss_reason("skipped", "") == "no reason given"


def test_only_a_probability_is_shown_in_percent() -> None:
    """A calibrated confidence is a percentage; an uncalibrated score must not look like one."""
    assert words.confidence(0.204, calibrated=True) == "20%"
    assert words.confidence(0.204, calibrated=False) == "0.20"
    assert words.confidence(None, calibrated=True) == "–"


@pytest.mark.parametrize(
    ("changes", "marked"),
    [
        ({}, True),
        ({"calibrated": False, "reason": "low_token_probability"}, True),
        ({"calibrated": False, "reason": "high_map_entropy"}, False),
        ({"calibrated": False, "flagged": False, "reason": None}, False),
        ({"threshold": None}, False),
    ],
)
def test_threshold_is_marked_only_on_its_own_number(
    make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], marked: bool
) -> None:
    """The bar has a threshold when this number was held against it, not when that of the map's entropy was."""
    shown: list[str] = []
    monkeypatch.setattr(views, "st", SimpleNamespace(html=shown.append))
    views.confidence(view(make_case, **changes))
    assert ('title="threshold 0.60"' in shown[0]) is marked
    assert ("uncalibrated confidence" in shown[0]) is (not changes.get("calibrated", True))


@pytest.mark.parametrize(
    ("ago", "expected"),
    [
        (timedelta(seconds=-5), "just now"),
        (timedelta(seconds=59), "just now"),
        (timedelta(minutes=1), "1 min ago"),
        (timedelta(minutes=59, seconds=59), "59 min ago"),
        (timedelta(hours=1), "1 h ago"),
        (timedelta(hours=23, minutes=59), "23 h ago"),
        (timedelta(days=1), "1 d ago"),
        (timedelta(days=400), "400 d ago"),
    ],
)
def test_age(ago: timedelta, expected: str) -> None:
    """An age is given in the largest unit that fits; a clock that is ahead does no harm."""
    assert words.age(NOW - ago, NOW) == expected


def test_moments_are_in_utc() -> None:
    """Times of all zones are shown in UTC and say so."""
    assert words.moment(datetime(2026, 1, 2, 1, 30, tzinfo=timezone(timedelta(hours=2)))) == "2026-01-01 23:30 UTC"


def test_shares() -> None:
    """A share has one decimal; of nothing there is none."""
    assert (words.share(1, 8), words.share(0, 8), words.share(1, 0), words.percent(None)) == ("12.5%", "0.0%", "–", "–")


def test_style_names_no_place_elsewhere() -> None:
    """The style sheet fetches nothing."""
    assert not re.search(r"url\(|@import|https?:", html.unescape(views.STYLE))
