"""The case page: how the picture is shown, what its numbers mean, what else was asked, and the closer look."""

from __future__ import annotations

import importlib.util
import re
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from streamlit.delta_generator import DeltaGenerator
from streamlit.runtime.scriptrunner import StopException
from streamlit.testing.v1 import AppTest

from fastrm_monitor.config import load_settings
from fastrm_monitor.dashboard import closer, views
from fastrm_monitor.dashboard.meanings import Feature
from fastrm_monitor.dashboard.queries import CaseRow
from fastrm_monitor.dashboard.serve import serve
from fastrm_monitor.errors import FastRMError, ModelError
from fastrm_monitor.lab import closer as lab
from fastrm_monitor.lab.closer import Look, Masked
from fastrm_monitor.records.images import pack_map
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.types import RelevanceMap
from tests.pages import CASE, QUEUE, opened, press, ran, sent, shown
from tests.test_dashboard_pages import press_twice
from tests.test_dashboard_words import MARKUP, read

Make = Callable[..., Case]


@pytest.fixture
def add(store: Store, make_case: Make) -> Callable[..., str]:
    """Puts a case of the embedded model into the store; returns its id."""

    def put(number: int = 0, **changes: Any) -> str:
        case = make_case(number, **{"model": "embedded-llava", **changes})
        for picture in case.pictures:
            picture.relevance = pack_map(np.linspace(0, 0.9, 64, dtype=np.float32))
        case_id = case.case_id
        store.add([case])
        return case_id

    return put


def alts(at: AppTest) -> list[str]:
    return [str(image.proto.imgs[0].alt) for image in at.get("image")]


# --- the picture ---------------------------------------------------------------------------------------------------


def test_side_by_side(add: Callable[..., str]) -> None:
    """The bare picture stands beside the one with its heatmap, in the same size; alone again when that is hidden."""
    at = opened(CASE, case=add())
    at.toggle(key="beside").set_value(True)
    ran(at)
    bare, heat = alts(at)
    assert bare == "The picture without its heatmap."
    assert heat.startswith("The picture with its heatmap")
    press(at, "toggle-heatmap")
    assert alts(at) == ["The picture without its heatmap."]


@pytest.mark.parametrize("key", ["patches", "stretch", "outline"])
def test_each_control_draws_another_picture(add: Callable[..., str], key: str) -> None:
    """Patches, stretched colours and the outline each change what is drawn, and setting them back brings it back."""
    at = opened(CASE, case=add())
    before = at.get("image")[0].proto.imgs[0].url
    value = at.toggle(key=key).value
    at.toggle(key=key).set_value(not value)
    assert ran(at).get("image")[0].proto.imgs[0].url != before
    at.toggle(key=key).set_value(value)
    assert ran(at).get("image")[0].proto.imgs[0].url == before


def test_outline_can_be_moved(add: Callable[..., str]) -> None:
    """The outline is at the decision threshold unless it is moved, and cannot be moved while there is none."""
    at = opened(CASE, case=add())
    assert at.slider(key="outline-from").value == 0.5
    before = at.get("image")[0].proto.imgs[0].url
    at.slider(key="outline-from").set_value(0.2)
    assert ran(at).get("image")[0].proto.imgs[0].url != before
    at.toggle(key="outline").set_value(False)
    assert ran(at).slider(key="outline-from").disabled


def test_patches_say_their_values(add: Callable[..., str]) -> None:
    """On case page and queue every patch has its value to be pointed at, and none while the heatmap is hidden."""
    case_id = add()
    for at in (opened(CASE, case=case_id), opened(QUEUE)):
        (values,) = re.findall(r'data-values="([^"]*)"', shown(at))
        assert len(values.split()) == 64
        press(at, "toggle-heatmap")
        assert "data-values" not in shown(at)


# --- words ---------------------------------------------------------------------------------------------------------


def test_features_in_words(add: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features have sentences; with the proxy folder of this confidence also what each pulled, and else none."""
    LogisticConfidence(("token_probability",), (0.0,), (1.0,), (1.0,), 0.0, 0.5).save(tmp_path)
    case_id = add(features={"token_probability": 0.2, "map_entropy": 1.0}, confidence=0.2)
    page = shown(opened(CASE, case=case_id))
    assert "evenly on 64 of 64 patches" in page
    assert "All of the relevance lies on the picture" in page
    assert "FASTRM_PROXY names the proxy folder" in page
    assert "frm-pull" not in page
    monkeypatch.setenv("FASTRM_PROXY", str(tmp_path))
    page = shown(opened(CASE, case=case_id))
    assert "this one was pulled down Token probability (-1.39)" in page
    assert "down -1.39" in page
    assert "not part of it" in page


def test_same_pictures_other_questions(add: Callable[..., str]) -> None:
    """Other cases about the same picture are linked with question, answer and verdict; of many, the newest few."""
    case_id = add(0)
    at = opened(CASE, case=case_id)
    assert "No other stored case has this picture." in shown(at)
    others = [add(number, question=f"question {number}?", verdict="wrong") for number in range(1, 9)]
    at = opened(CASE, case=case_id)
    links = [link.proto.query_string for link in at.get("page_link") if link.proto.label == "Open"]
    assert links == [f"case={one}" for one in reversed(others[2:])]
    assert "question 8?" in shown(at)
    assert "These are the newest 6; there are more." in shown(at)


def test_trace_link(add: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With an address of traces there is a link; the ids can be copied in any case; without a trace that is said."""
    case_id = add(trace_id="ab12", span_id="cd34")
    at = opened(CASE, case=case_id)
    assert [code.value for code in at.code] == ["ab12", "cd34"]
    assert at.get("link_button") == []
    monkeypatch.setenv("FASTRM_TRACE_URL", "https://traces.example/t/{trace_id}?span={span_id}")
    (link,) = opened(CASE, case=case_id).get("link_button")
    assert link.proto.url == "https://traces.example/t/ab12?span=cd34"
    at = opened(CASE, case=add(1, trace_id=None, span_id=None))
    assert "No trace" in shown(at)
    assert at.get("link_button") == []
    assert [code.value for code in at.code] == []


def test_trace_id_stays_inside_of_its_place(add: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace id that is none cannot lead elsewhere."""
    monkeypatch.setenv("FASTRM_TRACE_URL", "https://traces.example/t/{trace_id}")
    (link,) = opened(CASE, case=add(trace_id="../x?y#{span_id}")).get("link_button")
    assert link.proto.url == "https://traces.example/t/..%2Fx%3Fy%23%7Bspan_id%7D"


@pytest.mark.parametrize(
    "template", ["javascript:alert({trace_id})", "https://host/trace", "https://host/{trace_id} x", "{trace_id}"]
)
def test_unusable_trace_address_is_one_sentence(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    """An address that is none of the web, or has no place for the trace, is refused and the sentence has an example."""
    monkeypatch.setenv("FASTRM_TRACE_URL", template)
    with pytest.raises(FastRMError, match=r"FASTRM_TRACE_URL.*give an address like https://host/trace/\{trace_id\}\.$"):
        load_settings()


def test_page_with_an_unusable_setting(add: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is not usable is one sentence on the page, and no traceback."""
    case_id = add()
    monkeypatch.setenv("FASTRM_TRACE_URL", "javascript:alert({trace_id})")
    at = opened(CASE, case=case_id)
    assert "give an address like" in shown(at)
    assert "javascript:alert" not in sent(at)


@pytest.mark.parametrize("text", MARKUP)
def test_pieces_of_the_page_are_inert(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a related case or a feature's name says, no piece of page makes an element or an attribute of it."""
    written: list[str] = []
    monkeypatch.setattr(views, "st", SimpleNamespace(html=written.append))

    def draw(foreign: str) -> list[str]:
        written.clear()
        views.related(CaseRow("id", datetime.now(UTC), foreign, foreign, 0.5, True, None, True, None, foreign))
        views.features([Feature(foreign, foreign, 1.0, foreign, -1.0), Feature(foreign, "title", 1.0, "", None)])
        views.quiet(foreign)
        views.said([foreign, foreign])
        return [f"{tag}{sorted(attributes)}" for tag, attributes in read("".join(written)).tags]

    assert draw("harmless") == draw(text)
    assert read("".join(written)).text.count(text) == 9


# --- looking closer ------------------------------------------------------------------------------------------------


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRM_MODEL", "embedded")


def look(at: AppTest, case_id: str) -> AppTest:
    return press(at, f"look-closer-{case_id}")


def can_look(at: AppTest) -> bool:
    return any(button.label in ("Look closer", "Try again") for button in at.button)


@pytest.mark.usefixtures("model")
def test_look_closer(add: Callable[..., str], store: Store) -> None:
    """The embedded model is asked again: the teacher's map beside the proxy's, what masking did, and how both agree.

    The store is as it was before.
    """
    case_id = add()
    before = dump(store)
    at = look(opened(CASE, case=case_id), case_id)
    page = shown(at)
    assert re.search(r"With the most relevant half of the picture masked the model (still )?answers “\w+”; with", page)
    assert re.search(r"Rank correlation of the two maps -?[01]\.\d\d", page)
    assert all(share in page for share in ("25%", "50%", "75%"))
    assert [alt.split(" heatmap")[0] for alt in alts(at)] == [
        f"The picture with {whose}" for whose in ("its", "the proxy's", "the teacher's")
    ]
    assert not can_look(at)
    assert dump(store) == before


def dump(store: Store) -> list[str]:
    """Everything that is in the store."""
    with sqlite3.connect(store.path or "") as connection:
        return list(connection.iterdump())


def without_pictures(case: Case) -> Case:
    case.pictures[0].content = None
    return case


def damaged(case: Case) -> Case:
    case.pictures[0].content = b"no picture"
    return case


def without_maps(case: Case) -> Case:
    case.pictures = []
    return case


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_pictures, "The picture was not stored (FASTRM_PICTURES), so the model cannot be asked again."),
        (damaged, "The stored picture cannot be read, so the model cannot be asked again."),
        (without_maps, "The case was stored without maps, so there is nothing to look at."),
    ],
)
def test_case_that_cannot_be_looked_at(
    store: Store, make_case: Make, change: Callable[[Case], Case], said: str
) -> None:
    """What a closer look needs and the case lacks is said in a sentence, in place of the button."""
    case = change(make_case(0))
    case_id = case.case_id
    store.add([case])
    at = opened(CASE, case=case_id)
    assert said in shown(at)
    assert not can_look(at)


def test_no_model_to_ask(add: Callable[..., str]) -> None:
    """Without a model the page says how to name one."""
    at = opened(CASE, case=add())
    assert "Start the dashboard with --model (FASTRM_MODEL)" in shown(at)
    assert not can_look(at)


@pytest.mark.usefixtures("model")
def test_libraries_that_are_missing(add: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lab's libraries the page says what to install."""
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "scipy" else there(name, *rest)
    )
    at = opened(CASE, case=add())
    assert "pip install &#x27;fastrm-monitor[lab]&#x27;" in shown(at)
    assert not can_look(at)


@pytest.mark.usefixtures("model")
def test_cautions(add: Callable[..., str], make_case: Make) -> None:
    """Another model's name and a thumbnail are said before anybody looks, and one may look all the same."""
    (picture,) = make_case(1).pictures
    picture.width, picture.height = 640, 480
    at = opened(CASE, case=add(1, model="gpt-<b>", pictures=[picture]))
    page = shown(at)
    assert "“gpt-&lt;b&gt;” answered and “embedded” is asked here" in page
    assert "Only a thumbnail was stored (64 x 64 of 640 x 480 pixels)" in page
    assert can_look(at)
    assert "asked here" not in shown(opened(CASE, case=add(0)))


@pytest.mark.parametrize("name", ["/models/llava-1.5", "/models/llava-1.5/"])
@pytest.mark.parametrize("served", ["llava-1.5", "/models/llava-1.5"])
def test_names_of_one_model(make_case: Make, name: str, served: str) -> None:
    """A folder and the last part of its path are the same model, as transformers and vLLM name it."""
    from tests.test_dashboard_meanings import view

    assert closer.cautions(view(make_case, model=served), name, []) == []
    assert len(closer.cautions(view(make_case, model="other"), name, [])) == 1


FOUND = Look(
    answer="red",
    maps=(RelevanceMap(np.eye(8, dtype=np.float32)),),
    correlation=0.5,
    overlap=0.25,
    label_threshold=0.3,
    masked=tuple(
        Masked(order, share, "<img src=x>", True)  # type: ignore[arg-type]
        for order in ("most", "least")
        for share in (0.25, 0.5, 0.75)
    ),
)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, model: None) -> list[str]:
    """The question of every look that was begun; each takes three steps and finds `FOUND`."""
    begun: list[str] = []

    def made_up(asker: object, layout: object, question: str, *rest: object) -> Generator[str, None, Look]:
        begun.append(question)
        for step in range(3):
            yield f"step {step}"
        return FOUND

    monkeypatch.setattr(lab, "look_closer", made_up)
    return begun


def test_what_the_model_says_is_inert(add: Callable[..., str], starts: list[str]) -> None:
    """An answer of markup is shown as text, and that it is not the one that was served is said."""
    case_id = add(answer="blue")
    at = look(opened(CASE, case=case_id), case_id)
    assert "<img" not in shown(at)
    assert "Asked again, the model answers “red”, which is not what it answered when serving" in shown(at)
    case_id = add(1, answer="Red")
    assert "Asked again" not in shown(look(opened(CASE, case=case_id), case_id))


def test_second_press_starts_no_second_look(add: Callable[..., str], starts: list[str]) -> None:
    """A press that comes while the first one is being worked off begins nothing."""
    case_id = add()
    at = opened(CASE, case=case_id)
    press_twice(at, at.button(key=f"look-closer-{case_id}"))
    assert len(starts) == 1
    assert "With the most relevant half" in shown(ran(at))


def test_run_that_was_stopped_is_taken_up_again(
    add: Callable[..., str], starts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a newer press stops a run in the middle of a look, the next run goes on with that look to its end."""
    case_id = add()
    at = opened(CASE, case=case_id)
    real, shares = DeltaGenerator.progress, []

    def progress(self: DeltaGenerator, share: float, *rest: Any) -> Any:
        shares.append(share)
        if len(shares) == 3:
            raise StopException
        return real(self, share, *rest)

    monkeypatch.setattr(DeltaGenerator, "progress", progress)
    at.button(key=f"look-closer-{case_id}").click()
    at.run()
    assert "With the most relevant half" not in shown(at)
    assert "With the most relevant half" in shown(ran(at))
    assert len(starts) == 1
    assert shares == sorted(shares)


def test_one_step_at_a_time() -> None:
    """Two runs of a session that are at the same look never do the same step, nor two steps at once."""
    inside, most, go = [0], [0], threading.Event()

    def steps() -> Generator[str, None, Look]:
        for _ in range(20):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            go.wait(0.01)
            inside[0] -= 1
            yield "step"
        return FOUND

    job = closer.Job("a", lambda: (steps(), threading.Lock()))

    def work() -> None:
        while job.running:
            job.advance()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert job.look is FOUND
    assert (most[0], job.done) == (1, 19)


def test_look_belongs_to_its_case(add: Callable[..., str], starts: list[str]) -> None:
    """Another case's page does not show it, and can be looked at itself."""
    first, second = add(0), add(1)
    at = look(opened(CASE, case=first), first)
    at.query_params["case"] = second
    assert "With the most relevant half" not in shown(ran(at))
    assert "With the most relevant half" in shown(look(at, second))
    assert len(starts) == 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelError("The teacher needs eager attention."), "The teacher needs eager attention."),
        (RuntimeError("out of\nmemory"), "The model failed (RuntimeError: out of memory)."),
    ],
)
def test_look_that_fails_can_be_tried_again(
    add: Callable[..., str], starts: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    """What went wrong is one sentence and no traceback, and the next try begins anew."""
    case_id, works = add(), lab.look_closer

    def fails(*given: Any) -> Generator[str, None, Look]:
        yield "step"
        raise error

    monkeypatch.setattr(lab, "look_closer", fails)
    at = look(opened(CASE, case=case_id), case_id)
    assert said in shown(at)
    assert "Traceback" not in sent(at)
    assert [button.label for button in at.button if button.key == f"look-closer-{case_id}"] == ["Try again"]
    monkeypatch.setattr(lab, "look_closer", works)
    assert "With the most relevant half" in shown(look(at, case_id))


@pytest.mark.parametrize(("given", "told"), [("llava-hf/x", "llava-hf/x"), (None, "from-the-environment")])
def test_model_of_the_command_line(monkeypatch: pytest.MonkeyPatch, given: str | None, told: str) -> None:
    """The model that the dashboard is started with goes before the one of the environment."""
    environments: list[dict[str, str]] = []

    def start(command: list[str], env: dict[str, str]) -> None:
        environments.append(env)
        raise KeyboardInterrupt

    monkeypatch.setenv("FASTRM_MODEL", "from-the-environment")
    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(KeyboardInterrupt):
        serve("sqlite:///x.db", port=free_port(), model=given)
    assert environments[0]["FASTRM_MODEL"] == told


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_model_that_cannot_be_loaded(add: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is not there is named in a sentence."""
    monkeypatch.setenv("FASTRM_MODEL", "/nowhere/llava")
    case_id = add(model="llava")
    assert "There is no model folder at /nowhere/llava" in shown(look(opened(CASE, case=case_id), case_id))
