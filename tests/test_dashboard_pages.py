"""The pages, run without a browser: what they show, and that a verdict is written once and can be undone."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import streamlit
from sqlalchemy import delete, event, select
from sqlalchemy.engine import Engine
from streamlit.runtime.scriptrunner import StopException
from streamlit.testing.v1 import AppTest

from fastrm_monitor.dashboard import queries
from fastrm_monitor.dashboard.queries import CaseView, Queue
from fastrm_monitor.records.models import Case, Claim, Review
from fastrm_monitor.records.store import Store
from tests.pages import APP, CASE, QUEUE, opened, press, ran, sent, shown

MINUTE = datetime.now(UTC) - timedelta(hours=2)

Make = Callable[..., Case]


@pytest.fixture
def three(store: Store, make_case: Make) -> list[str]:
    """Ids of three flagged cases, lowest confidence first."""
    cases = [make_case(number) for number in range(3)]
    store.add(cases)
    return [case.case_id for case in cases]


def undo_button(at: AppTest) -> Any:
    (button,) = [button for button in at.button if button.label == "Undo"]
    return button


def undo(at: AppTest) -> AppTest:
    undo_button(at).click()
    return ran(at)


def press_twice(at: AppTest, button: Any) -> None:
    """What the browser sends for a press, sent again before it has shown what came of it."""
    button.click()
    message = at._tree.get_widget_states()
    at._run(message)
    # A browser says nothing of buttons that are not pressed.
    told = [one for one in message.widgets if one.WhichOneof("value") != "trigger_value" or one.trigger_value]
    at._run(type(message)(widgets=told))
    assert [error.value for error in at.exception] == []


def give(at: AppTest, verdict: str, case_id: str) -> AppTest:
    return press(at, f"verdict-{verdict}-{case_id}")


def stored(store: Store, case_id: str) -> CaseView:
    with store.session() as session:
        found = queries.case(session, case_id)
    assert found is not None
    return found


def reviews(store: Store) -> list[tuple[str, str, str]]:
    """(reviewer, verdict, note) of every review, oldest first."""
    with store.session() as session:
        found = session.execute(select(Review.reviewer, Review.verdict, Review.note).order_by(Review.id))
        return [(reviewer, verdict, note) for reviewer, verdict, note in found]


def at_hand(at: AppTest) -> str:
    """The id of the case that the verdict buttons are for."""
    (button,) = [button for button in at.button if button.label == "Correct"]
    return str(button.key).removeprefix("verdict-correct-")


def traffic(seen: int, flagged: int, when: datetime = MINUTE) -> list[tuple[datetime, str, str, float]]:
    return [
        (when, "seen", "", seen),
        (when, "scored", "", seen),
        (when, "flagged", "low_confidence", flagged),
        (when, "confidence_sum", "", 0.75 * seen),
    ]


# --- overview ------------------------------------------------------------------------------------------------------


def test_overview_of_an_empty_store(store: Store) -> None:
    """A store into which nothing was written says what to do, shows no number and does not claim that all is well."""
    for at in (opened(), opened(range="All")):
        assert "Waiting for answers" in shown(at)
        assert "Nothing was lost" not in shown(at)
        assert [metric.value for metric in at.metric] == []


def test_overview_of_traffic(store: Store, three: list[str], make_case: Make) -> None:
    """Numbers over all traffic with their intervals, curves, losses by reason, and the newest flagged cases."""
    store.add_traffic("one", traffic(80, 8) + traffic(20, 2, MINUTE - timedelta(hours=1)))
    store.add_traffic("two", [(MINUTE, "seen", "", 25), (MINUTE, "skipped", "no_image", 25)])
    store.add_traffic("two", [(MINUTE, "dropped", "queue_full", 4)])
    store.add([make_case(3, flagged=False, sampled=True, question="sampled?")])
    store.review(three[0], "wrong", "ana")
    at = opened()
    assert {metric.label: (metric.value, metric.delta) for metric in at.metric} == {
        "Answers seen": ("125", ""),
        "Scored": ("100", "80.0% of seen"),
        "Flag rate": ("10.0%", "5.5% to 17.4%"),
        "Mean confidence": ("0.75", "n = 100"),
        "Open cases": ("2", "and 1 sampled"),
        "Dropped": ("4", "4.0% of scored"),
    }
    page = shown(at)
    assert "no picture in the request" in page
    assert "the queue was full" in page
    assert "sampled?" not in page
    assert [link.proto.query_string for link in at.get("page_link")] == [f"case={one}" for one in reversed(three)]
    assert len(at.get("vega_lite_chart") or at.get("arrow_vega_lite_chart")) == 2


def test_overview_span_of_time(store: Store) -> None:
    """A shorter span leaves out what came before it."""
    store.add_traffic("one", traffic(80, 8) + traffic(20, 2, MINUTE - timedelta(days=3)))
    seen = [opened(range=name).metric[0].value for name in ("24 hours", "7 days", "All")]
    assert seen == ["80", "100", "100"]
    at = opened(range="1 hour")
    assert "No answers in this span" in shown(at)
    assert [metric.value for metric in at.metric] == []


def test_overview_of_cases_without_counts(store: Store, three: list[str]) -> None:
    """Cases are listed even where no traffic was counted."""
    at = opened()
    assert "Waiting for answers" in shown(at)
    assert len(at.get("page_link")) == 3


def test_overview_of_losses_alone(store: Store) -> None:
    """When everything fails the page shows the failures and no rate."""
    store.add_traffic("one", [(MINUTE, "failed", "score", 5)])
    at = opened()
    assert {metric.label: metric.value for metric in at.metric}["Flag rate"] == "–"
    assert "scoring" in shown(at)


def test_unknown_choice_in_the_address(store: Store, three: list[str]) -> None:
    """An address with a choice that does not exist opens the page with the usual one."""
    store.add_traffic("one", traffic(20, 2, MINUTE - timedelta(days=3)))
    assert opened(range="<script>").metric[0].value == "20"
    at = opened(QUEUE, kind="<script>", state="x", order="1; DROP TABLE cases")
    assert [box.value for box in at.selectbox] == ["flagged", "open", "confidence"]
    assert at_hand(at) == three[0]


# --- the queue -----------------------------------------------------------------------------------------------------


def test_queue_of_an_empty_store(store: Store) -> None:
    """Without cases the queue says where they will come from."""
    assert "No cases yet" in shown(opened(QUEUE))


def test_queue_shows_the_first_case(store: Store, three: list[str]) -> None:
    """The first case is there with picture, question, answer, confidence, reason and the list it comes from."""
    at = opened(QUEUE)
    case, page = stored(store, three[0]), shown(at)
    assert at_hand(at) == three[0]
    assert "1 of 3 open" in page
    assert case.question in page
    assert case.answer in page
    assert "20%" in page
    assert "the calibrated confidence is below the threshold (0.60)" in page
    shown_and_next = [bool(image.alt) for found in at.get("image") for image in found.proto.imgs]
    assert shown_and_next == [True, False]  # the next case's picture is out of sight
    assert list(at.dataframe[0].value["Question"]) == [stored(store, case_id).question for case_id in three]


def test_queue_that_is_done(store: Store, three: list[str]) -> None:
    """When every case has a verdict the queue says so, and the reviewed ones can be had."""
    for case_id in three:
        store.review(case_id, "correct", "ana")
    at = opened(QUEUE)
    assert "All reviewed" in shown(at)
    at.selectbox(key="state").select("reviewed")
    ran(at)
    assert "1 of 3 reviewed" in shown(at)


def test_queue_filters(store: Store, three: list[str], make_case: Make) -> None:
    """Each filter takes the reviewer to the first case of its own queue, and one without cases says so."""
    sampled = make_case(9, flagged=False, sampled=True)
    wanted = sampled.case_id
    store.add([sampled])
    at = opened(QUEUE)
    at.selectbox(key="kind").select("sampled")
    assert at_hand(ran(at)) == wanted
    assert "Random sample" in shown(at)
    at.selectbox(key="kind").select("flagged")
    at.selectbox(key="order").select("newest")
    assert at_hand(ran(at)) == three[2]
    at.selectbox(key="state").select("reviewed")
    assert "No case fits" in shown(ran(at))


def test_queue_filters_in_the_address(store: Store, three: list[str]) -> None:
    """A link to a queue with its filters opens that queue."""
    assert at_hand(opened(QUEUE, order="Newest first", state="Open and reviewed")) == three[2]


def test_next_and_previous(store: Store, three: list[str]) -> None:
    """Next and previous walk the queue, stop at its ends and write nothing."""
    at = opened(QUEUE)
    assert at.button(key="previous").disabled
    assert at_hand(press(at, "next")) == three[1]
    assert at_hand(press(at, "next")) == three[2]
    assert at.button(key="next").disabled
    assert at_hand(press(at, "previous")) == three[1]
    assert reviews(store) == []


# --- verdicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", ["correct", "wrong", "not_grounded", "unsure"])
def test_verdict_is_written_and_the_queue_moves_on(store: Store, three: list[str], verdict: str) -> None:
    """One press writes one review with name and note, decides the case, and brings the next one with an empty note."""
    at = opened(QUEUE)
    at.text_input(key="reviewer").input("  Ana ")
    at.text_input(key=f"note-{three[0]}").input("the mug is green")
    give(at, verdict, three[0])
    assert reviews(store) == [("Ana", verdict, "the mug is green")]
    assert stored(store, three[0]).verdict == verdict
    assert at_hand(at) == three[1]
    assert "1 of 2 open" in shown(at)
    assert at.text_input(key=f"note-{three[1]}").value == ""


def test_verdicts_to_the_end_of_the_queue(store: Store, three: list[str]) -> None:
    """The last case wraps round to one that was passed over, and after all of them the queue is done."""
    at = opened(QUEUE)
    press(at, "next")
    give(at, "correct", three[1])
    give(at, "correct", three[2])
    assert at_hand(at) == three[0]
    give(at, "wrong", three[0])
    assert "All reviewed" in shown(at)
    assert [verdict for _, verdict, _ in reviews(store)] == ["correct", "correct", "wrong"]


def test_second_verdict_is_appended(store: Store, three: list[str]) -> None:
    """A new verdict on a reviewed case decides it and leaves the first review as it was."""
    store.review(three[0], "correct", "ben", "sure")
    give(opened(QUEUE, state="Reviewed"), "wrong", three[0])
    assert reviews(store) == [("ben", "correct", "sure"), ("reviewer", "wrong", "")]
    assert stored(store, three[0]).verdict == "wrong"


def test_undo(store: Store, three: list[str]) -> None:
    """Undo reopens the last case, shows it again, and appends to the history rather than erase it."""
    at = opened(QUEUE)
    assert undo_button(at).disabled
    give(at, "wrong", three[0])
    give(at, "correct", three[1])
    assert at_hand(undo(at)) == three[1]
    assert at_hand(undo(at)) == three[0]
    assert undo_button(at).disabled
    assert [verdict for _, verdict, _ in reviews(store)] == ["wrong", "correct", "undone", "undone"]
    assert [stored(store, case_id).verdict for case_id in three] == [None, None, None]


def test_late_second_press_acts_on_nothing_unseen(store: Store, three: list[str]) -> None:
    """A key pressed again while the browser still shows the old page touches no other case and verdict."""
    at = opened(QUEUE)
    for verdict in ("wrong", "correct", ""):
        button = at.button(key=f"verdict-{verdict}-{at_hand(at)}") if verdict else undo_button(at)
        press_twice(at, button)
    assert [verdict for _, verdict, _ in reviews(store)] == ["wrong", "correct", "undone"]
    assert at_hand(at) == three[1]


def test_press_that_is_repeated_for_a_stopped_run(
    store: Store, three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a newer press stops a run just after its verdict was written, the repetition is no conflict with oneself."""
    at = opened(QUEUE)
    stops = iter([True])

    def toast(*arguments: object, **options: object) -> None:
        if next(stops, False):
            raise StopException

    monkeypatch.setattr(streamlit, "toast", toast)
    press_twice(at, at.button(key=f"verdict-wrong-{three[0]}"))
    assert [verdict for _, verdict, _ in reviews(store)] == ["wrong"]
    assert at_hand(at) == three[1]
    assert "frm-notice" not in shown(at)
    assert not undo_button(at).disabled


def test_presses_of_a_session_wait_for_each_other(store: Store, three: list[str]) -> None:
    """While the run of one press is at a verdict, that of the next one does not begin with another."""
    at = opened(QUEUE)
    thread = threading.Thread(target=give, args=(at, "wrong", three[0]))
    with at.session_state["desk"].lock:
        thread.start()
        thread.join(1)
        assert thread.is_alive()
        assert reviews(store) == []
    thread.join(60)
    assert [verdict for _, verdict, _ in reviews(store)] == ["wrong"]


def test_undo_restores_the_verdict_before(store: Store, three: list[str]) -> None:
    """Undo on a case that had a verdict brings that one back, with its reviewer, note and tags."""
    store.review(three[0], "correct", "ben", "sure", ["night"])
    at = opened(QUEUE, state="Reviewed")
    give(at, "wrong", three[0])
    undo(at)
    found = stored(store, three[0])
    last = found.reviews[-1]
    assert found.verdict == "correct"
    assert (last.verdict, last.reviewer, last.note, last.tags) == ("correct", "ben", "sure", ("night",))
    assert len(found.reviews) == 3


def test_undo_from_an_empty_queue(store: Store, three: list[str]) -> None:
    """The last verdict of all can be taken back although no case is left to show."""
    for case_id in three[1:]:
        store.review(case_id, "correct", "ben")
    at = opened(QUEUE)
    give(at, "wrong", three[0])
    assert "All reviewed" in shown(at)
    assert at_hand(undo(at)) == three[0]
    assert stored(store, three[0]).verdict is None


def test_another_reviewer_was_first(store: Store, three: list[str]) -> None:
    """A verdict on a case that changed meanwhile is not written: the page says who was first, and the note is kept."""
    at = opened(QUEUE)
    at.text_input(key=f"note-{three[0]}").input("the mug is green")
    store.review(three[0], "correct", "Ben")
    give(at, "wrong", three[0])
    assert reviews(store) == [("Ben", "correct", "")]
    assert re.search(r"labelled this case “Correct” \d+ s ago\. Your “Wrong” was not stored", shown(at))
    assert "Ben" in shown(at)
    assert at_hand(at) == three[0]
    assert at.text_input(key=f"note-{three[0]}").value == "the mug is green"

    give(at, "wrong", three[0])  # pressed again: now it is meant
    assert reviews(store) == [("Ben", "correct", ""), ("reviewer", "wrong", "the mug is green")]
    assert at_hand(at) == three[1]
    assert "was not stored" not in shown(at)


def test_undo_after_another_reviewer(store: Store, three: list[str]) -> None:
    """Undo does not take away what another reviewer said after it."""
    at = opened(QUEUE)
    give(at, "wrong", three[0])
    store.review(three[0], "correct", "Ben")
    undo(at)
    assert stored(store, three[0]).verdict == "correct"
    assert "so your verdict was left as it is" in shown(at)
    assert undo_button(at).disabled


def test_case_purged_while_it_was_shown(store: Store, three: list[str]) -> None:
    """A verdict on a case that was purged meanwhile is refused with a sentence, and the queue goes on."""
    at = opened(QUEUE)
    with store.session(write=True) as session:
        session.delete(session.scalars(select(Case).where(Case.case_id == three[0])).one())
    give(at, "wrong", three[0])
    assert "it may have been purged" in shown(at)
    assert reviews(store) == []
    assert at_hand(at) == three[1]


def test_verdict_that_cannot_be_written(store: Store, three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """When the database refuses, the page says so, the note is kept, and the case stays at hand."""
    at = opened(QUEUE)
    at.text_input(key=f"note-{three[0]}").input("the mug is green")

    def refuse(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith("INSERT INTO reviews"):
            raise sqlite3.OperationalError("database or disk is full")

    event.listen(Engine, "before_cursor_execute", refuse)
    try:
        give(at, "wrong", three[0])
    finally:
        event.remove(Engine, "before_cursor_execute", refuse)
    assert "cannot be written: database or disk is full" in shown(at)
    assert at_hand(at) == three[0]
    assert at.text_input(key=f"note-{three[0]}").value == "the mug is green"
    assert stored(store, three[0]).verdict is None


# --- one case ------------------------------------------------------------------------------------------------------


def test_case_by_its_link(store: Store, three: list[str]) -> None:
    """The link opens the case with its picture, texts, history, origin and features."""
    store.review(three[1], "unsure", "Ben", "too dark", ["night"])
    at = opened(CASE, case=three[1])
    case, page = stored(store, three[1]), shown(at)
    for said in (case.question, case.answer, "Ben", "Unsure", "too dark #night", case.request_id):
        assert said in page
    assert [code.value for code in at.code] == [case.trace_id, case.span_id]
    assert ">0.2100<" in page  # the token probability
    assert len(at.get("image")) == 1


def test_verdict_on_the_case_page(store: Store, three: list[str]) -> None:
    """A verdict on a case's own page is written and shown there, and can be undone there."""
    at = opened(CASE, case=three[2])
    give(at, "wrong", three[2])
    assert at_hand(at) == three[2]
    assert "Wrong" in shown(at)
    assert [verdict for _, verdict, _ in reviews(store)] == ["wrong"]
    undo(at)
    assert stored(store, three[2]).verdict is None


def test_undo_stays_with_its_case(store: Store, three: list[str]) -> None:
    """The page of one case does not take back the verdict of another, which nobody would see there."""
    at = opened(CASE, case=three[0])
    give(at, "wrong", three[0])
    at.query_params["case"] = three[1]
    assert undo_button(ran(at)).disabled


@pytest.mark.parametrize("case_id", ["00000000-0000-0000-0000-00000000dead", "<script>alert(1)</script>", "' OR 1=1"])
def test_case_that_is_not_there(store: Store, three: list[str], case_id: str) -> None:
    """A link to a case that is not there says so in a sentence, and leads on."""
    at = opened(CASE, case=case_id)
    assert "No such case" in shown(at)
    assert "<script>" not in shown(at)
    assert [link.proto.label for link in at.get("page_link")] == ["Go to the review queue"]


def test_case_page_without_a_case(store: Store) -> None:
    """The case page without a case says what its links look like."""
    assert "ends in ?case=" in shown(opened(CASE))


def test_hostile_case(store: Store, make_case: Make) -> None:
    """A case whose every text is markup reaches list, page and history as text."""
    hostile = "<img src=x onerror=alert(1)>\u202e"
    fields = ("question", "answer", "model", "server", "request_id", "proxy_version", "reason")
    case = make_case(0, **dict.fromkeys(fields, hostile), features={hostile: 1.0})
    case_id = case.case_id
    store.add([case])
    store.review(case_id, "wrong", hostile, hostile, [hostile])
    for at in (opened(), opened(QUEUE, state="Open and reviewed"), opened(CASE, case=case_id)):
        assert "&lt;img" in shown(at)
        assert "<img" not in shown(at)
        assert "\u202e" not in shown(at)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pictures": []}, "stored without pictures and maps"),
        ({"confidence": None, "calibrated": False, "threshold": None, "reason": None}, "no confidence"),
        ({"entropy": None, "features": {}}, "None stored."),
    ],
)
def test_case_with_little(store: Store, make_case: Make, changes: dict[str, object], said: str) -> None:
    """A case that lacks pictures, numbers or features still opens, in page and queue, and says what is missing."""
    case = make_case(0, **changes)
    case_id = case.case_id
    store.add([case])
    assert said in shown(opened(CASE, case=case_id))
    assert at_hand(opened(QUEUE)) == case_id


def test_damaged_map(store: Store, make_case: Make) -> None:
    """A map that does not fit its grid is said to be damaged, and the case can still be judged."""
    case = make_case(0)
    case.pictures[0].rows = 5
    store.add([case])
    at = opened(QUEUE)
    assert "the store is damaged" in shown(at)
    assert at.button(key=f"verdict-wrong-{at_hand(at)}")


def test_several_pictures(store: Store, make_case: Make) -> None:
    """The case page shows every picture of a request; the queue shows one and lets the reviewer choose."""
    case, other = make_case(0), make_case(1)
    other.pictures[0].position = 1
    case.pictures.append(other.pictures[0])
    case_id = case.case_id
    store.add([case])
    assert len(opened(CASE, case=case_id).get("image")) == 2
    at = opened(QUEUE)
    assert at.get("image")[0].proto.imgs[0].alt.startswith("Picture 1 of 2 with its heatmap")
    at.get("button_group")[0].set_value(1)
    ran(at)
    assert at.get("image")[0].proto.imgs[0].alt.startswith("Picture 2 of 2 with its heatmap")


def test_heatmap_can_be_hidden(store: Store, three: list[str]) -> None:
    """Hiding the heatmap shows the picture alone, with no legend, and showing it brings both back."""
    at = opened(QUEUE)
    before = at.get("image")[0].proto.imgs[0]
    press(at, "toggle-heatmap")
    after = at.get("image")[0].proto.imgs[0]
    assert (after.alt, before.url == after.url) == ("The picture without its heatmap.", False)
    assert "frm-legend" not in shown(at)
    press(at, "toggle-heatmap")
    assert at.get("image")[0].proto.imgs[0].url == before.url
    assert "frm-legend" in shown(at)


# --- what must not happen ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["", QUEUE, CASE])
def test_store_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, page: str) -> None:
    """A store that cannot be opened is one sentence on every page: no traceback, no page, no password."""
    for url, said in (
        (f"sqlite:///{tmp_path}/nowhere/store.db", "does not exist; make it first"),
        ("postgresql://user:hunter2@127.0.0.1:1/db", "cannot be opened"),
        ("mysql://user:hunter2@host/db", "cannot be of the kind"),
    ):
        monkeypatch.setenv("FASTRM_STORE", url)
        at = opened(page, case="x")
        assert shown(at).count("<h1>") == 1
        assert "The store cannot be opened" in shown(at)
        assert said in shown(at)
        assert "Traceback" not in sent(at)
        assert "hunter2" not in sent(at)
        assert len(at.button) == 0


def test_store_that_fails_later(store: Store, three: list[str], store_url: str) -> None:
    """A database that breaks while pages are open is one sentence on every page, and no traceback."""
    pages = [opened(), opened(QUEUE), opened(CASE, case=three[0])]
    streamlit.cache_resource.clear()
    with store.session(write=True) as session:
        for table in ("reviews", "case_pictures", "traffic", "cases"):
            session.connection().exec_driver_sql(f"ALTER TABLE {table} RENAME TO old_{table}")
    for at in pages:
        assert "lacks tables of it: restore it from a backup" in shown(ran(at))
        assert "Traceback" not in sent(at)


def test_no_password_on_any_page(store: Store, three: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's address is at the foot of every page without the password in it."""
    path = store.safe_url.removeprefix("sqlite:///")
    monkeypatch.setenv("FASTRM_STORE", f"sqlite:///file:{path}?uri=true&password=hunter2")
    store.add_traffic("one", traffic(5, 1))
    for at in (opened(), opened(QUEUE), opened(CASE, case=three[0])):
        assert path in sent(at)
        assert "hunter2" not in sent(at)


def test_pages_fetch_no_more_rows_than_they_show(store: Store, make_case: Make) -> None:
    """What a page reads from the store does not grow with the store, and of pictures it reads the one it shows."""
    store.add([make_case(number) for number in range(30)])
    read: list[tuple[object, ...]] = []

    def keep(cursor: sqlite3.Cursor, row: tuple[object, ...]) -> tuple[object, ...]:
        read.append(row)
        return row

    def listen(connection: sqlite3.Connection, record: object) -> None:
        connection.row_factory = keep

    def fetched() -> list[tuple[int, int]]:
        """(rows, bytes of pictures and maps) that overview, queue, and the queue's second case read."""
        counts = []
        with store.session(write=True) as session:
            session.execute(delete(Claim))  # of the session before, which would be at the first case
        at = AppTest.from_file(str(APP), default_timeout=60)
        for page, key in (("", ""), (QUEUE, ""), ("", "next")):
            read.clear()
            streamlit.cache_resource.clear()
            if page:
                at.switch_page(page)
            press(at, key) if key else ran(at)
            blobs = sum(len(value) for row in read for value in row if isinstance(value, bytes))
            counts.append((len(read), blobs))
        return counts

    event.listen(Engine, "connect", listen)
    try:
        few = fetched()
        template = make_case(0)
        store.add([make_case(0, case_id=f"more-{n}", pictures=[], confidence=0.9) for n in range(400)])
        many = fetched()
    finally:
        event.remove(Engine, "connect", listen)
    assert many == few
    assert max(rows for rows, _ in few) < 60
    assert [blobs > 0 for _, blobs in few] == [False, True, True]
    assert max(blobs for _, blobs in few) < 2 * len(template.pictures[0].content or b"")


def test_list_pages(store: Store, make_case: Make) -> None:
    """The list shows ten cases at a time, begins at the page of the case at hand, and each page has its own ten."""
    store.add([make_case(number) for number in range(25)])
    with store.session() as session:
        questions = [row.question for row in queries.rows(session, Queue(), 25)]
    at = opened(QUEUE)
    assert list(at.dataframe[0].value["Question"]) == questions[:10]
    at.get("pagination")[0].set_value(3)
    assert list(ran(at).dataframe[0].value["Question"]) == questions[20:]
