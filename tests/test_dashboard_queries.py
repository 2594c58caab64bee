"""The queue: its order, its neighbours and its filters are what a reviewer believes them to be.

Every test runs on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event, select
from sqlalchemy.engine import Engine

from fastrm_monitor.dashboard import queries
from fastrm_monitor.dashboard.queries import CaseRow, Place, Queue
from fastrm_monitor.records.models import Case, CasePicture
from fastrm_monitor.records.store import Store
from tests.big import fill, program

EVERYTHING = Queue("all", "all", "oldest")

# id: (confidence, entropy, interest), in the order they are stored; two ties and two gaps in each number.
NUMBERS = {
    "a": (0.5, 0.1, 0.3),
    "b": (0.2, 0.9, None),
    "c": (None, 0.9, 0.7),
    "d": (0.2, None, 0.7),
    "e": (0.9, 0.5, None),
    "f": (None, None, 0.1),
}
ORDERS = {
    "confidence": "bdaecf",
    "interest": "dcafeb",
    "entropy": "cbeafd",
    "newest": "fedcba",
    "oldest": "abcdef",
}

orders = pytest.mark.parametrize("order", ORDERS)


@pytest.fixture
def store(any_store_url: str) -> Iterator[Store]:
    with Store(any_store_url) as opened:
        yield opened


@pytest.fixture
def bare(make_case: Callable[..., Case]) -> Callable[..., Case]:
    """A case by its id, without pictures unless they are given."""
    return lambda case_id, **changes: make_case(0, **{"case_id": case_id, "pictures": [], **changes})


@pytest.fixture
def six(store: Store, bare: Callable[..., Case]) -> Store:
    store.add([bare(n, confidence=c, entropy=e, interest=i) for n, (c, e, i) in NUMBERS.items()])
    return store


def listed(store: Store, queue: Queue, limit: int = 100, offset: int = 0) -> list[str]:
    with store.session() as session:
        return [row.case_id for row in queries.rows(session, queue, limit, offset)]


def place(store: Store, queue: Queue, case_id: str) -> Place | None:
    with store.session() as session:
        return queries.place(session, queue, case_id)


# --- order ---------------------------------------------------------------------------------------------------------


@orders
def test_order(six: Store, order: queries.Order) -> None:
    """Lowest confidence, highest interest or entropy, newest or oldest first; what has no number comes last.

    Ties are in the order of their age, the newest first where the order is a descending one.
    """
    queue = Queue("open", "flagged", order)
    assert listed(six, queue) == list(ORDERS[order])
    with six.session() as session:
        assert queries.first(session, queue) == ORDERS[order][0]
        assert queries.count(session, queue) == 6


@orders
def test_every_place_has_its_neighbours(six: Store, order: queries.Order) -> None:
    """Position, total, previous and next of each case agree with the list, from one end to the other."""
    ids = ORDERS[order]
    for number, case_id in enumerate(ids):
        before, after = ids[number - 1] if number else None, ids[number + 1] if number < 5 else None
        assert place(six, Queue("open", "flagged", order), case_id) == Place(number + 1, 6, before, after)


@orders
def test_walking_visits_each_case_once(store: Store, bare: Callable[..., Case], order: queries.Order) -> None:
    """Next leads through a long queue full of ties and gaps in the order of the list, previous leads back."""
    dice = random.Random(5)
    store.add(
        [
            bare(f"{n:03}", confidence=dice.choice([None, 0.25, 0.5]), entropy=dice.choice([None, 0.25, 0.5]))
            for n in range(40)
        ]
    )
    queue = Queue("open", "flagged", order)
    expected = listed(store, queue)
    assert sorted(expected) == [f"{n:03}" for n in range(40)]
    for forward, ids in ((True, expected), (False, expected[::-1])):
        walked: list[str | None] = [ids[0]]
        with store.session() as session:
            while walked[-1] is not None and len(walked) < 100:
                walked.append(queries.step(session, queue, walked[-1], forward=forward))
        assert walked == [*ids, None]


@orders
def test_reviewed_case_keeps_its_place(six: Store, order: queries.Order) -> None:
    """A case that left the queue by a verdict still has the neighbours of its old place, and nobody is skipped."""
    ids = ORDERS[order]
    six.review(ids[2], "correct", "ana")
    queue = Queue("open", "flagged", order)
    assert listed(six, queue) == [*ids[:2], *ids[3:]]
    assert place(six, queue, ids[2]) == Place(3, 5, ids[1], ids[3])
    with six.session() as session:
        assert queries.step(session, queue, ids[2], forward=True) == ids[3]
        assert queries.step(session, queue, ids[2], forward=False) == ids[1]


def test_new_cases_do_not_move_the_neighbour(six: Store, bare: Callable[..., Case]) -> None:
    """Cases that arrive before and after the one on the screen change the count, not what comes next but one."""
    queue = Queue("open", "flagged", "confidence")
    six.add([bare("low", confidence=0.01), bare("high", confidence=0.99)])
    assert place(six, queue, "d") == Place(3, 8, "b", "a")


def test_unknown_case_has_no_place(six: Store) -> None:
    """A case that was purged, or never was, has neither place nor neighbours nor page."""
    queue = Queue()
    assert place(six, queue, "gone") is None
    with six.session() as session:
        assert queries.step(session, queue, "gone", forward=True) is None
        assert queries.case(session, "gone") is None


def test_empty_queue(store: Store) -> None:
    """An empty store has an empty queue."""
    with store.session() as session:
        assert (queries.count(session, Queue()), queries.first(session, Queue())) == (0, None)
        assert queries.rows(session, Queue(), 10) == []


# --- filters -------------------------------------------------------------------------------------------------------

FILTERS = {
    ("open", "flagged"): ["flagged", "both"],
    ("open", "sampled"): ["sampled", "both"],
    ("open", "all"): ["flagged", "sampled", "both", "neither"],
    ("reviewed", "flagged"): ["flagged, done"],
    ("reviewed", "sampled"): ["sampled, done"],
    ("reviewed", "all"): ["flagged, done", "sampled, done"],
    ("all", "flagged"): ["flagged", "both", "flagged, done"],
    ("all", "sampled"): ["sampled", "both", "sampled, done"],
    ("all", "all"): ["flagged", "sampled", "both", "neither", "flagged, done", "sampled, done"],
}


@pytest.fixture
def mixed(store: Store, bare: Callable[..., Case]) -> Store:
    kinds = {"flagged": (True, False), "sampled": (False, True), "both": (True, True), "neither": (False, False)}
    store.add([bare(name, flagged=flagged, sampled=sampled) for name, (flagged, sampled) in kinds.items()])
    store.add([bare("flagged, done"), bare("sampled, done", flagged=False, sampled=True)])
    store.review("flagged, done", "wrong", "ana")
    store.review("sampled, done", "unsure", "ana")
    return store


@pytest.mark.parametrize(("filters", "expected"), FILTERS.items(), ids=map(" ".join, FILTERS))
def test_filters(mixed: Store, filters: tuple[queries.State, queries.Kind], expected: list[str]) -> None:
    """State and kind choose exactly their cases, for the list, the count and the places alike."""
    queue = Queue(*filters, "oldest")
    assert listed(mixed, queue) == expected
    with mixed.session() as session:
        assert queries.count(session, queue) == len(expected)
    assert [place(mixed, queue, case_id) for case_id in expected] == [
        Place(n + 1, len(expected), ([None, *expected])[n], [*expected, None][n + 1]) for n in range(len(expected))
    ]


def test_undone_verdict_opens_the_case(mixed: Store) -> None:
    """A verdict that was taken back puts the case among the open ones again."""
    mixed.review("flagged, done", "undone", "ana")
    assert listed(mixed, Queue("open", "flagged", "oldest")) == ["flagged", "both", "flagged, done"]
    assert listed(mixed, Queue("reviewed", "flagged", "oldest")) == []


# --- lists ---------------------------------------------------------------------------------------------------------


def test_pages_of_a_list(six: Store) -> None:
    """Pages follow each other without gap or overlap, and beyond the end there is nothing."""
    queue = Queue("open", "flagged", "confidence")
    assert [listed(six, queue, 4, offset) for offset in (0, 4, 8)] == [list("bdae"), list("cf"), []]


def test_row_of_a_list(store: Store, bare: Callable[..., Case]) -> None:
    """A row says what the list shows of a case, with long texts cut."""
    moment = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    long = {"question": "q" * 5000, "answer": "ä" * 5000}
    store.add([bare("a", created_at=moment, calibrated=False, **long)])
    store.review("a", "wrong", "ana")
    with store.session() as session:
        (row,) = queries.rows(session, EVERYTHING, 10)
    assert row == CaseRow("a", moment, "q" * 160, "ä" * 160, 0.2, False, 0.9, True, "low_confidence", "wrong")


def test_lists_leave_pictures_alone(store: Store, make_case: Callable[..., Case]) -> None:
    """No list, count or place touches the pictures, which are most of the store."""
    store.add([make_case(number) for number in range(3)])
    said: list[str] = []

    def listen(connection: object, cursor: object, statement: str, *rest: object) -> None:
        said.append(statement)

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        with store.session() as session:
            ids = [row.case_id for row in queries.rows(session, Queue(), 10)]
            queries.place(session, Queue(), ids[0])
    finally:
        event.remove(Engine, "before_cursor_execute", listen)
    assert len(ids) == 3
    assert said
    assert not [statement for statement in said if "case_pictures" in statement]


# --- one case ------------------------------------------------------------------------------------------------------


def test_case_with_pictures_and_reviews(store: Store, bare: Callable[..., Case]) -> None:
    """A case comes whole: numbers, pictures in prompt order whatever order they were written in, reviews by age."""
    pictures = [
        CasePicture(
            position=position,
            width=30,
            height=20,
            content=bytes([position]),
            rows=1,
            columns=1,
            relevance=b"\0\0",
            region=[0.25, 0.0, 0.75, 1.0],
        )
        for position in (1, 0)
    ]
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    store.add([bare("a", pictures=pictures, created_at=moment, reason="high_map_entropy", sample_rate=0.125)])
    store.review("a", "wrong", "ana", "the mug is green", ["colour", "habit"])
    store.review("a", "unsure", "ben")
    with store.session() as session:
        view = queries.case(session, "a")
    assert view is not None
    assert (view.created_at, view.reason, view.sample_rate) == (moment, "high_map_entropy", 0.125)
    assert view.features == {"map_entropy": 0.9, "token_probability": 0.2, "token_entropy": 1.1}
    assert [(one.content, one.region) for one in view.pictures] == [
        (b"\0", (0.25, 0.0, 0.75, 1.0)),
        (b"\1", (0.25, 0.0, 0.75, 1.0)),
    ]
    assert [(one.reviewer, one.verdict, one.note, one.tags) for one in view.reviews] == [
        ("ana", "wrong", "the mug is green", ("colour", "habit")),
        ("ben", "unsure", "", ()),
    ]
    assert datetime.now(UTC) - view.reviews[0].created_at < timedelta(minutes=5)
    assert (view.verdict, view.version) == ("unsure", 2)


def test_models(store: Store, bare: Callable[..., Case]) -> None:
    """Every model and proxy with a scored case is there once, that with the newest case first."""
    told = [("b", "2", 0.5), ("a", "1", 0.5), ("b", "1", 0.5), ("c", "1", None), ("a", "1", 0.5), ("", "9", 0.1)]
    with store.session() as session:
        assert queries.models(session) == []
    for number, (model, proxy, confidence) in enumerate(told):
        store.add([bare(str(number), model=model, proxy_version=proxy, confidence=confidence)])
    with store.session() as session:
        assert queries.models(session) == [("", "9"), ("a", "1"), ("b", "1"), ("b", "2")]


@pytest.mark.parametrize("statistics", [False, True])
def test_no_queue_is_sorted(store_url: str, statistics: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every queue is read in the order of an index; without statistics, as SQLite is, no table is read whole."""
    bench = program("store")
    monkeypatch.setattr(bench, "RUNS", 0)  # plans are wanted, no times
    fill(store_url, 600, reviewed=0.3)
    with Store(store_url) as store:
        if statistics:
            store.maintain("ANALYZE")
        with store.session() as session:
            case_id = session.scalars(select(Case.case_id).limit(1)).one()
        for name in ("queries.rows", "queries.first", "queries.step", "queries.place", "queries.count"):
            for what, ask in bench.calls(name, case_id, datetime.now(UTC)):
                plans = bench.measure(store, what, ask).plans
                assert plans
                wrong = ("SORT",) if statistics or what.startswith("all, all") else ("SORT", "WHOLE cases")
                assert not [plan for plan in plans if any(word in plan for word in wrong)], (name, what, plans)
