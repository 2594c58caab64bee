"""Deleting: what was asked for goes with all that belongs to it, nothing else does, and it does not come back."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from fastrm_monitor.drift.watch import Drift
from fastrm_monitor.errors import FastRMError
from fastrm_monitor.records import purge
from fastrm_monitor.records.counters import Counters
from fastrm_monitor.records.drift import add_drift
from fastrm_monitor.records.frames import HEADER, decode_case, encode_case
from fastrm_monitor.records.models import Base, Case
from fastrm_monitor.records.outbox import Outbox
from fastrm_monitor.records.purge import Counts, Selection
from fastrm_monitor.records.scrub import Scrubbed, scrub
from fastrm_monitor.records.spool import Spool
from fastrm_monitor.records.store import Store
from tests.big import fill

NOW = datetime.now(UTC)


def rows(store: Store) -> dict[str, int]:
    with store.session() as session:
        return {
            name: session.scalar(select(func.count()).select_from(table)) or 0
            for name, table in Base.metadata.tables.items()
        }


def requests(store: Store) -> list[str]:
    with store.session() as session:
        return sorted(session.scalars(select(Case.request_id)))


def total(store: Store, selection: Selection) -> Counts:
    return sum(purge.purge(store, selection), Counts())


@pytest.fixture
def filled(any_store_url: str, make_case: Callable[..., Case]) -> Store:
    """Ten cases of one day each, the even ones of a user, one labelled twice; drift and traffic of the same days."""
    store = Store(any_store_url)
    for number in range(10):
        at = NOW - timedelta(days=number, minutes=1)
        store.add([make_case(number, created_at=at, user_key="ann" if number % 2 == 0 else None)])
        store.add_traffic("host:1", [(at, "seen", "", 1.0), (at, "scored", "", 1.0)])
        add_drift(store, "host:1", "m", [Drift("confidence", 0.25, 1e-9, 0.5, 0.125, 1000, 400)], at)
    labelled = str(make_case(8).case_id)
    store.review(labelled, "wrong", "rae")
    store.review(labelled, "correct", "rae")
    return store


def test_older_than(filled: Store) -> None:
    """What is older goes, drift and traffic too; the counts said before, said after and missing are the same."""
    before = rows(filled)
    selection = Selection(before=NOW - timedelta(days=5))
    said = purge.count(filled, selection)
    drift = before["drift"] // 2
    assert said == Counts(cases=5, pictures=5, reviews=2, traffic=10, drift=drift)
    assert total(filled, selection) == said
    gone = {name: before[name] - count for name, count in rows(filled).items() if count != before[name]}
    assert gone == {"cases": 5, "case_pictures": 5, "reviews": 2, "traffic": 10, "drift": drift, "purges": -1}
    assert requests(filled) == [f"request-{number}" for number in range(5)]
    filled.close()


def test_labelled_cases_may_stay(filled: Store) -> None:
    """With `keep_labelled`, a case with a verdict stays with its reviews; one whose verdict was undone goes."""
    selection = Selection(before=NOW - timedelta(days=5), keep_labelled=True)
    with filled.session() as session:
        labelled = session.scalars(select(Case.case_id).where(Case.verdict.is_not(None))).one()
    assert total(filled, selection).cases == 4
    assert "request-8" in requests(filled)
    filled.review(labelled, "undone", "rae")
    assert total(filled, selection).cases == 1
    filled.close()


def test_one_user(filled: Store) -> None:
    """Of one user all cases go, labelled or not; counts of traffic stay, since nobody is in them."""
    assert total(filled, Selection(user_key="ann")) == Counts(cases=5, pictures=5, reviews=2)
    assert requests(filled) == [f"request-{number}" for number in (1, 3, 5, 7, 9)]
    assert rows(filled)["traffic"] == 20
    filled.close()


def test_purged_cases_do_not_come_back(filled: Store, make_case: Callable[..., Case]) -> None:
    """A purged case, and a user's answers from before, are left out wherever they waited; later ones are stored."""
    case_id = str(make_case(3).case_id)
    total(filled, Selection(case_id=case_id))
    total(filled, Selection(user_key="ann"))
    late = make_case(21, user_key="ann", created_at=datetime.now(UTC) + timedelta(seconds=5))
    early = make_case(20, user_key="ann", created_at=NOW - timedelta(hours=1))
    assert filled.add([make_case(3), early, late, make_case(22, user_key="bob")]) == 2
    assert {"request-21", "request-22"} <= set(requests(filled))
    assert not {"request-3", "request-20"} & set(requests(filled))
    assert filled.add([early]) == 0
    filled.close()


def test_old_cases_do_not_come_back(filled: Store, make_case: Callable[..., Case]) -> None:
    """What is older than a purge's age is left out wherever it waited, after a purge of less, too; newer is stored."""
    total(filled, Selection(before=NOW - timedelta(days=5)))
    total(filled, Selection(before=NOW - timedelta(days=9)))
    cases = [make_case(30 + days, created_at=NOW - timedelta(days=days)) for days in (4, 6, 12)]
    assert filled.add(cases) == 1
    assert "request-34" in requests(filled)
    filled.close()


def test_retention_leaves_no_rule_behind(filled: Store, make_case: Callable[..., Case]) -> None:
    """A server's own deleting, by a clock that may be wrong, keeps nothing out that is written later."""
    sum(purge.purge(filled, Selection(before=NOW - timedelta(days=5)), remember=False), Counts())
    assert filled.add([make_case(36, created_at=NOW - timedelta(days=6))]) == 1
    filled.close()


@pytest.mark.parametrize(
    ("selection", "kept"),
    [
        (Selection(user_key="ann"), (1, 3)),
        (Selection(before=NOW - timedelta(days=2, hours=1)), (0, 1, 2)),
        (Selection(before=NOW - timedelta(days=2, hours=1), keep_labelled=True), (0, 1, 2)),
        (Selection(case_id=str(uuid.UUID(int=3))), (0, 1, 3)),
        (Selection(before=NOW + timedelta(days=1)), ()),
        (Selection(user_key="bob"), (0, 1, 2, 3)),
    ],
)
def test_text_is_taken_out_of_a_spool(
    tmp_path: Path, make_case: Callable[..., Case], selection: Selection, kept: tuple[int, ...]
) -> None:
    """Of what a server left, the texts to be deleted are in no file any more, and the next server reads all others."""
    folder, old = tmp_path / "spool", Spool(tmp_path / "spool", 1 << 20)
    for number in range(4):
        user, at = "ann" if number % 2 == 0 else None, NOW - timedelta(days=number)
        one = make_case(number, question=f"SESAME{number}", user_key=user, created_at=at)
        old.add(encode_case(one), flagged=number < 3)
    assert scrub(folder, selection).removed == 0  # while the server that wrote them runs
    assert scrub(folder, selection).left == 4 - len(kept)
    old.close()
    assert scrub(folder, selection) == Scrubbed(removed=4 - len(kept))
    lying = b"".join(path.read_bytes() for path in folder.iterdir())
    assert [number for number in range(4) if b"SESAME%d" % number in lying] == list(kept)
    new = Spool(folder, 1 << 20)
    assert new.adopt() == len(kept)
    found = []
    while (lent := new.lend()) is not None:
        found += [decode_case(payload or b"").question for payload in lent.payloads]
        new.done(lent)
    assert sorted(found) == [f"SESAME{number}" for number in kept]
    new.close()


def test_delivered_text_does_not_lie_in_a_spool(tmp_path: Path, make_case: Callable[..., Case]) -> None:
    """What was delivered from a file that is not empty yet is gone from it, too, and the rest is read once."""
    folder, old = tmp_path / "spool", Spool(tmp_path / "spool", 1 << 20)
    for number in range(3):
        old.add(encode_case(make_case(number, question=f"SESAME{number}", user_key=None)), flagged=True)
    lent = old.lend(1)
    assert lent is not None
    old.done(lent)
    old.close()
    assert scrub(folder, Selection(user_key="ann")) == Scrubbed()
    (path,) = folder.glob("*.flagged")
    lying = path.read_bytes()
    assert [number for number in range(3) if b"SESAME%d" % number in lying] == [1, 2]
    new = Spool(folder, 1 << 20)
    assert new.adopt() == 2
    new.close()


def test_damage_in_a_spool_stays(tmp_path: Path, make_case: Callable[..., Case]) -> None:
    """A damaged record is neither lost nor repaired by a purge: the server that reads it counts it."""
    folder, old = tmp_path / "spool", Spool(tmp_path / "spool", 1 << 20)
    for number in range(3):
        old.add(encode_case(make_case(number, user_key="ann" if number else None)), flagged=True)
    old.close()
    (path,) = folder.glob("*.flagged")
    data = bytearray(path.read_bytes())
    data[200] ^= 0xFF  # in the first record
    path.write_bytes(data)
    assert scrub(folder, Selection(user_key="ann")) == Scrubbed(removed=2)
    new = Spool(folder, 1 << 20)
    assert new.adopt() == 1
    lent = new.lend()
    assert lent is not None
    assert lent.payloads == [None]
    new.close()


def test_damaged_lengths_are_not_dropped(tmp_path: Path, make_case: Callable[..., Case]) -> None:
    """A purge takes cases out behind a damaged length, too, and what cannot be read is still counted after it."""
    folder, old = tmp_path / "spool", Spool(tmp_path / "spool", 1 << 20)
    payloads = [encode_case(make_case(number, user_key=user)) for number, user in enumerate([None, None, "ann"])]
    for payload in payloads:
        old.add(payload, flagged=True)
    old.close()
    (path,) = folder.glob("*.flagged")
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    data[len(HEADER) + 8 + len(payloads[0]) + 2] ^= 0x40  # the length of the second record
    path.write_bytes(data)
    assert scrub(folder, Selection(user_key="ann")) == Scrubbed(removed=1)
    new = Spool(folder, 1 << 20)
    assert new.adopt() == 2
    lent = new.lend()
    assert lent is not None
    assert lent.payloads == [payloads[0], None]
    new.close()


def test_no_name_is_kept(filled: Store) -> None:
    """What must not come back is remembered by a digest, not by the user's key."""
    total(filled, Selection(user_key="ann"))
    with filled.session() as session:
        (kept,) = session.execute(select(Base.metadata.tables["purges"])).all()
    assert kept.kind == "user"
    assert len(kept.digest) == 64
    assert "ann" not in str(tuple(kept))
    filled.close()


def test_spooled_case_of_a_purged_user(any_store_url: str, tmp_path: Path, make_case: Callable[..., Case]) -> None:
    """A case that waited on disk is not written by the replay, and the replay ends: nothing waits any more."""
    spool, counters = Spool(tmp_path / "spool", 1 << 20), Counters()
    for number, user in enumerate(("ann", "bob")):
        counters.begin()
        spool.add(encode_case(make_case(number, user_key=user)), flagged=True)
    with Store(any_store_url) as store:
        total(store, Selection(user_key="ann"))
        outbox = Outbox(store, spool, counters, dropped=lambda reason, count: None)
        outbox.idle()
        assert spool.waiting == 0
        assert requests(store) == ["request-1"]
        assert counters.balance().pending == 0
        outbox.close()


def test_purge_beside_a_writer(any_store_url: str, make_case: Callable[..., Case]) -> None:
    """While a server writes a user's earlier answers as fast as it can, a purge leaves none of them behind."""
    stop, written = threading.Event(), threading.Event()

    def write() -> None:
        with Store(any_store_url) as own:
            number = 0
            while not stop.is_set():
                number += 1
                own.add([make_case(number % 5, case_id=f"c{number}", user_key="ann", created_at=NOW - timedelta(1))])
                if number == 5:
                    written.set()

    with Store(any_store_url) as store:
        thread = threading.Thread(target=write)
        thread.start()
        assert written.wait(20)
        total(store, Selection(user_key="ann"))
        left = requests(store)
        stop.set()
        thread.join(20)
        assert left == requests(store) == []


def test_short_transactions(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A purge goes in portions, between which others may write."""
    fill(store_url, 100)
    monkeypatch.setattr(purge, "BATCH", 30)
    with Store(store_url) as store:
        steps = [step.cases for step in purge.purge(store, Selection(before=datetime.now(UTC) + timedelta(1)))]
    assert [cases for cases in steps if cases] == [30, 30, 30, 10]


def test_deleted_text_is_not_left_in_the_file(store_url: str, make_case: Callable[..., Case]) -> None:
    """Of a purged case no byte of its question remains in an SQLite file, its log included."""
    with Store(store_url) as store:
        store.add([make_case(1, question="the secret SESAME word", user_key="ann")])
        total(store, Selection(user_key="ann"))
        purge.forget(store)
        path = Path(store_url.removeprefix("sqlite:///"))
        assert all(b"SESAME" not in one.read_bytes() for one in path.parent.glob(f"{path.name}*") if one.is_file())


@pytest.mark.parametrize(
    ("said", "meant"), [("30d", timedelta(30)), ("12h", timedelta(hours=12)), (" 2W", timedelta(14))]
)
def test_ages(said: str, meant: timedelta) -> None:
    """Ages are read as people write them."""
    assert purge.read_age(said) == meant


@pytest.mark.parametrize("said", ["", "30", "d", "-3d", "1.5d", "30 days", "9999999d"])
def test_no_age(said: str) -> None:
    """Anything else is one sentence with examples."""
    with pytest.raises(FastRMError, match="write a number and a unit"):
        purge.read_age(said)
