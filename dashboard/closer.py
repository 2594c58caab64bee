"""Looking closer at one case, outside of serving: the teacher's map beside the proxy's, and the perturbation test.

The work is done in the session's own run, a step at a time. What was found so far is kept in the session, so a run that
another press or a moved slider stops is taken up again by the next one, and never begins anew. Nothing is stored.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import streamlit as st
from PIL import Image

from fastrm_monitor.config import load_settings
from fastrm_monitor.dashboard import drawing, findings, pictures, state, views, words
from fastrm_monitor.dashboard.queries import CaseView
from fastrm_monitor.errors import FastRMError, MissingExtraError

if TYPE_CHECKING:
    from fastrm_monitor.lab.ask import Asker
    from fastrm_monitor.lab.closer import Look
    from fastrm_monitor.scoring.patches import PatchLayout

_LOG = logging.getLogger(__name__)
_NEEDED = ("torch", "transformers", "safetensors", "scipy")
_EMBEDDED_NAMES = ("embedded", "embedded-llava", "model")  # as serving, the demo and its folder call it
_STEPS = 8  # `lab.closer.STEPS`, which cannot be had without torch

_Steps = Generator[str, None, "Look"]


@dataclass(frozen=True, eq=False)
class _Model:
    """A loaded model; hold `lock` while it works, for the teacher's hooks are in it."""

    asker: Asker
    layout: PatchLayout
    lock: Lock = field(default_factory=Lock)


@st.cache_resource(show_spinner=False, max_entries=1)
def _load(name: str) -> _Model:
    from fastrm_monitor.lab.ask import Asker, load_lvlm
    from fastrm_monitor.scoring.patches import layout_for

    model, processor = load_lvlm(name)
    return _Model(Asker(model, processor, max_new_tokens=32), layout_for(model.config, processor))


@dataclass
class Job:
    """One closer look; advanced by whichever run of the session is at it.

    Attributes:
        case_id: the case.
        start: loads the model and returns the steps.
        now: what comes next, in words.
        done: steps that are behind it.
        look: what was found, at the end.
        error: why it ended without, as a sentence.
    """

    case_id: str
    start: Callable[[], tuple[_Steps, Lock]]
    now: str = "loading the model"
    done: int = -1
    look: Look | None = None
    error: str | None = None
    _steps: tuple[_Steps, Lock] | None = None
    _lock: Lock = field(default_factory=Lock)

    @property
    def running(self) -> bool:
        """Whether there is something left to do."""
        return self.look is None and self.error is None

    def advance(self) -> None:
        """Do the next step; waits for the one that another run of the session is at."""
        with self._lock:
            if not self.running:
                return
            try:
                if self._steps is None:
                    self._steps = self.start()
                steps, model_lock = self._steps
                with model_lock:
                    self.now = next(steps)
                self.done += 1
            except StopIteration as end:
                self.look = end.value
            except FastRMError as error:
                self.error = str(error)
            except Exception as error:  # models fail in ways of their own
                _LOG.warning("fastrm-monitor: looking closer at case %s failed", self.case_id, exc_info=True)
                self.error = f"The model failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})."


@st.fragment
@state.guarded
def panel(view: CaseView, room: tuple[int, int], shares: tuple[int, int]) -> None:
    """The part of a case's page that looks closer.

    Args:
        view: the case.
        room: (width, height) in pixels for both maps side by side.
        shares: how the page is divided.
    """
    views.section("Look closer", "asks the model again, outside of serving; nothing is stored")
    name = load_settings().model
    obstacle = _obstacle(view, name)
    if obstacle:
        views.quiet(obstacle)
        return
    shown = [pictures.decode(one.content or b"") for one in view.pictures]
    found = [one for one in shown if one is not None]
    if len(found) < len(shown):
        views.quiet("The stored picture cannot be read, so the model cannot be asked again.")
        return
    for caution in cautions(view, name or "", found):
        views.notice("warning", caution)
    job: Job | None = st.session_state.get("closer")
    if job is None or job.case_id != view.case_id:
        job = None
    slot = st.empty()
    if job is not None and job.running:
        _work(job, slot)
    if job is not None and job.error is not None:
        views.notice("error", job.error)
    if job is not None and job.look is not None:
        _show(view, job.look, room, shares)
        return
    views.quiet(
        "Draws the teacher's gradient map of this answer, masks what the heatmap calls relevant, and sees whether the "
        "answer changes."
    )
    slot.button(
        "Look closer" if job is None else "Try again",
        key=f"look-closer-{view.case_id}",
        icon=":material/search_insights:",
        on_click=_begin,
        args=(view, name, found),
    )


def _begin(view: CaseView, name: str, found: list[Image.Image]) -> None:
    job: Job | None = st.session_state.get("closer")
    if job is None or job.case_id != view.case_id or job.error is not None:  # else it is at it already
        st.session_state["closer"] = Job(view.case_id, partial(_start, view, name, found))


def _start(view: CaseView, name: str, found: list[Image.Image]) -> tuple[_Steps, Lock]:
    from fastrm_monitor.lab.closer import look_closer

    model = _load(name)
    sizes = [
        (one.width or shown.width, one.height or shown.height) for one, shown in zip(view.pictures, found, strict=True)
    ]
    maps = [pictures.map_of(one).values for one in view.pictures]
    return look_closer(model.asker, model.layout, view.question, found, sizes, maps), model.lock


def _work(job: Job, slot: st.delta_generator.DeltaGenerator) -> None:
    """Go on with a job to its end, saying how far it is."""
    while job.running:
        slot.progress(max(job.done, 0) / _STEPS, f"{job.now[:1].upper()}{job.now[1:]} …")
        job.advance()
    slot.empty()


def _obstacle(view: CaseView, name: str | None) -> str:
    """Why this case cannot be looked at closer; "" when it can."""
    if not view.pictures:
        return "The case was stored without maps, so there is nothing to look at."
    if any(one.content is None for one in view.pictures):
        return "The picture was not stored (FASTRM_PICTURES), so the model cannot be asked again."
    if name is None:
        return (
            "Start the dashboard with --model (FASTRM_MODEL), a folder, a hub id or 'embedded', to ask it again here."
        )
    if any(importlib.util.find_spec(library) is None for library in _NEEDED):
        return str(MissingExtraError("Looking closer", "lab"))
    return ""


def cautions(view: CaseView, name: str, found: list[Image.Image]) -> list[str]:
    """What makes a closer look less than the answer as it was served: another model's name, a smaller picture.

    Args:
        view: the case.
        name: of the model that is asked, as the setting has it.
        found: the stored pictures.
    """
    said = []
    if view.model not in (_EMBEDDED_NAMES if name == "embedded" else (name, name.rstrip("/"), Path(name).name)):
        said.append(
            f"“{view.model}” answered and “{name}” is asked here: if these are not two names of one model, nothing "
            "below is about this answer."
        )
    sizes = [(one.width or 0, one.height or 0) for one in view.pictures]
    for size, shown in zip(sizes, found, strict=True):
        if size[0] > shown.width or size[1] > shown.height:
            said.append(
                f"Only a thumbnail was stored ({shown.width} x {shown.height} of {size[0]} x {size[1]} pixels): the "
                "model sees less here than when it answered."
            )
    return said


def _show(view: CaseView, look: Look, room: tuple[int, int], shares: tuple[int, int]) -> None:
    left, right = st.columns(shares, gap="large")
    with left:
        _maps(view, look, room)
    with right:
        if not findings.same_answer(view.answer, look.answer):
            views.notice(
                "warning",
                f"Asked again, the model answers “{findings.brief(look.answer)}”, which is not what it answered when "
                "serving; what follows is about the new answer.",
            )
        views.said(findings.masking(look))
        heads = ("Masked", "Most relevant first", "Least relevant first")
        st.html(words.table(heads, findings.masked_rows(look)))
        views.quiet(findings.agreement(look))


def _maps(view: CaseView, look: Look, room: tuple[int, int]) -> None:
    how = replace(drawing.chosen(), heatmap=True)
    half = ((room[0] - pictures.GAP) // 2, room[1])
    count = len(view.pictures)
    for number, (picture, taught) in enumerate(zip(view.pictures, look.maps, strict=True)):
        with st.container(horizontal=True, gap="small"):
            for key, grid, whose, caption in (
                ("proxy", pictures.map_of(picture), "the proxy's", "Proxy, as served"),
                ("teacher", taught, "the teacher's", "Teacher; 1 is its strongest patch"),
            ):
                with st.container(width=half[0], gap="xxsmall"):
                    pictures.show(picture, grid, number, count, half, how, f"{key}-{number}", whose)
                    views.quiet(caption)
