"""Small pieces of page: styles, headings, badges, the confidence, empty states.

Everything here that shows foreign text goes through `words.inert`. Nothing is said by colour alone. Knows no store.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import streamlit as st
from PIL import Image

from fastrm_monitor.dashboard import words
from fastrm_monitor.dashboard.meanings import Feature
from fastrm_monitor.dashboard.queries import CaseRow, CaseView
from fastrm_monitor.dashboard.scripts import KEYS, POINTING
from fastrm_monitor.dashboard.style import STYLE
from fastrm_monitor.overlay import colors

SHARES = (480, 430)
"""How a page with a case is divided: the picture, and what is said about it."""

ROOM = (480, 440)
"""(width, height) in pixels of a picture on such a page; at 1280 x 800 the legend below it is still in sight."""

VERDICT_ICONS = {"correct": "check", "wrong": "close", "not_grounded": "wrong_location", "unsure": "help"}
"""Material symbol of each verdict."""


@lru_cache(maxsize=1)
def favicon() -> Image.Image:
    """The picture of the browser's tab, a small heatmap; Streamlit would fetch symbols and emoji from elsewhere."""
    ys, xs = np.mgrid[:32, :32] + 0.5
    heat = np.exp(-((xs - 20) ** 2 + (ys - 13) ** 2) / 90)  # (32, 32)
    outside = (xs - 16) ** 2 + (ys - 16) ** 2 > 15.5**2
    alpha = np.where(outside, 0, 255)
    return Image.fromarray(np.dstack([colors(heat), alpha]).astype(np.uint8), "RGBA")


def style() -> None:
    """Put the pages' style sheet and scripts in; once a run."""
    st.html(STYLE)
    with st.container(key="frm-scripts"):
        st.html(f"<script>{KEYS}{POINTING}</script>", unsafe_allow_javascript=True)


def icon(name: str) -> str:
    """HTML of a Material symbol; the words beside it say the same."""
    return f'<span class="frm-icon" aria-hidden="true" translate="no">{name}</span>'


def badge(text: str, symbol: str, tone: str = "grey") -> str:
    """HTML of a badge with symbol and text; `tone` is grey, amber, green, red or blue. The text is made inert."""
    return f'<span class="frm-badge frm-{tone}">{icon(symbol)}{words.inert(text)}</span>'


def verdict_badge(verdict: str | None) -> str:
    """HTML of the badge of a verdict; None is open."""
    if verdict is None:
        return badge("Open", "radio_button_unchecked")
    tone = {"correct": "green", "wrong": "red", "not_grounded": "amber"}.get(verdict, "blue")
    return badge(words.VERDICT_NAMES.get(verdict, verdict), VERDICT_ICONS.get(verdict, "help"), tone)


def title(text: str, aside: str = "") -> None:
    """A page's heading with a quiet line beside it; both are our own words."""
    quiet = f'<span class="frm-aside">{html.escape(aside)}</span>' if aside else ""
    st.html(f'<div class="frm-title"><h1>{html.escape(text)}</h1>{quiet}</div>')


def section(text: str, aside: str = "") -> None:
    """The heading of a part of a page."""
    quiet = f'<span class="frm-aside">{html.escape(aside)}</span>' if aside else ""
    st.html(f'<div class="frm-section"><h2>{html.escape(text)}</h2>{quiet}</div>')


def notice(kind: str, text: str) -> None:
    """A sentence that must be read; `kind` is "info", "done", "warning" or "error". The text is made inert."""
    tones = {"info": ("group", "blue"), "done": ("check_circle", "green"), "warning": ("warning", "amber")}
    symbol, tone = tones.get(kind, ("error", "red"))
    role = "status" if kind in ("info", "done") else "alert"
    st.html(f'<div class="frm-notice frm-{tone}" role="{role}">{icon(symbol)}<span>{words.inert(text)}</span></div>')


def empty(symbol: str, heading: str, text: str) -> None:
    """What a page shows when there is nothing to show, and what to do about it. Texts are made inert."""
    st.html(f'<div class="frm-empty">{icon(symbol)}<h3>{words.inert(heading)}</h3><p>{words.inert(text)}</p></div>')


def badges(view: CaseView) -> None:
    """The row of badges of a case: verdict, flagged or sampled, age and model."""
    row = verdict_badge(view.verdict)
    if view.flagged:
        row += badge("Flagged", "flag", "amber")
    if view.sampled:
        row += badge("Random sample", "casino", "blue")
    when = f'<span title="{words.moment(view.created_at)}">{words.age(view.created_at)}</span>'
    st.html(f'<div class="frm-badges">{row}<span class="frm-quiet">{when} · {words.inert(view.model)}</span></div>')


def confidence(view: CaseView) -> None:
    """The confidence with its threshold as number and bar, why the case is here, and the entropy of its map."""
    kind = "calibrated confidence" if view.calibrated else "uncalibrated confidence"
    meaning = "probability that the answer is right" if view.calibrated else "score, not a probability"
    if view.confidence is None:
        kind, meaning = "no confidence", "nothing was there to make one from"
    bar = ""
    if view.confidence is not None:
        # The threshold belongs on this bar only if it was held against this number.
        same = view.calibrated or view.reason == "low_token_probability"
        mark = view.threshold if same else None
        tick = "" if mark is None else f'<i style="left:{_share(mark)}" title="threshold {mark:.2f}"></i>'
        said = f"confidence {view.confidence:.2f}" + ("" if mark is None else f", threshold {mark:.2f}")
        bar = (
            f'<div class="frm-bar" role="img" aria-label="{said}">'
            f'<b style="width:{_share(view.confidence)}"></b>{tick}</div>'
        )
    entropy = "" if view.entropy is None else f" Map entropy {view.entropy:.2f} of 1."
    st.html(
        f'<div class="frm-confidence"><strong>{words.confidence(view.confidence, view.calibrated)}</strong>'
        f'<span>{kind}<br><span class="frm-quiet">{meaning}</span></span></div>{bar}'
        f'<p class="frm-why">{words.inert(words.reason(view) + entropy)}</p>'
    )


def linked(line: Callable[[CaseRow], None], case: CaseRow) -> None:
    """One line of a list, and beside it the way to the case's page."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        line(case)
        st.page_link(
            "screens/case.py",
            label="Open",
            icon=":material/arrow_forward:",
            query_params={"case": case.case_id},
            width="content",
        )


def row(case: CaseRow) -> None:
    """One line of a list: confidence, question, answer, why and when."""
    st.html(
        f'<div class="frm-row"><strong>{words.confidence(case.confidence, case.calibrated)}</strong>'
        f'<div class="frm-line">{words.inert(words.plain(case.question))}</div>'
        f'<span class="frm-quiet" title="{words.moment(case.created_at)}">{words.age(case.created_at)}</span><i></i>'
        f'<div class="frm-line frm-quiet">{words.inert(words.plain(case.answer))}</div>'
        f'<span class="frm-quiet">{words.inert(words.short_reason(case))}</span></div>'
    )


def related(case: CaseRow) -> None:
    """One line of a list of cases about a same picture: question, answer, verdict and when."""
    st.html(
        f'<div class="frm-related"><div class="frm-line">{words.inert(words.plain(case.question))}</div>'
        f'<span class="frm-quiet" title="{words.moment(case.created_at)}">{words.age(case.created_at)}</span>'
        f'<div class="frm-line"><b>{words.inert(words.plain(case.answer))}</b> <span class="frm-quiet">'
        f"{words.confidence(case.confidence, case.calibrated)}</span></div>{verdict_badge(case.verdict)}</div>"
    )


def features(rows: Sequence[Feature]) -> None:
    """A table of features with what each means and, where it is known, how it pulled the confidence."""
    most = max((abs(row.pull) for row in rows if row.pull is not None), default=None)
    lines = [
        [
            words.inert(row.title) + (f"<br><code>{words.inert(row.name)}</code>" if row.title != row.name else ""),
            words.inert(f"{row.value:.4f}"),
            words.inert(row.meaning or "–"),
            *([] if most is None else [_pull(row.pull, most or 1.0)]),
        ]
        for row in rows
    ]
    heads = ["Feature", "Value", "What it says", *([] if most is None else ["Pulled the confidence"])]
    st.html(words.table_of_html(heads, lines, numbers=(1,)))


def _pull(pull: float | None, most: float) -> str:
    """HTML of a bar to the left for down, to the right for up, with the same in words."""
    if pull is None:
        return '<span class="frm-quiet">not part of it</span>'
    side = "down" if pull < 0 else "up"
    width = f"{50 * abs(pull) / most:.1f}%"
    return (
        f'<div class="frm-pull"><span class="frm-pullbar" aria-hidden="true"><b class="frm-{side}" '
        f'style="width:{width}"></b></span><span>{side} {pull:+.2f}</span></div>'
    )


def quiet(text: str) -> None:
    """A sentence that stands back. The text is made inert."""
    st.html(f'<p class="frm-quiet">{words.inert(text)}</p>')


def said(sentences: Sequence[str]) -> None:
    """Sentences that stand out, one below the other. Texts are made inert."""
    st.html("".join(f'<p class="frm-why">{words.inert(one)}</p>' for one in sentences))


def footer(version: str, store: str) -> None:
    """Which version looks at which store, at the foot of the sidebar."""
    st.html(f'<p class="frm-quiet">{words.inert(version)}<br>{words.inert(store)}</p>')


def dialogue(view: CaseView) -> None:
    """Question and answer; long ones scroll in place, so that the verdict buttons stay on the screen."""
    st.html(
        f'<div class="frm-said"><h3>Question</h3><div class="frm-text" tabindex="0">{words.inert(view.question)}</div>'
        f'<h3>Answer</h3><div class="frm-text frm-answer" tabindex="0">{words.inert(view.answer)}</div></div>'
    )


def _share(value: float) -> str:
    return f"{100 * min(max(value, 0.0), 1.0):.1f}%"
