"""Which other questions were asked about the pictures of a case."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastrm_monitor.dashboard import related
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store

Make = Callable[..., Case]


def of(make_case: Make, number: int, *hashes: str | None, **changes: object) -> Case:
    """Case `number` with pictures of these hashes."""
    pictures = []
    for position, one in enumerate(hashes):
        (picture,) = make_case(number).pictures
        picture.position, picture.sha256 = position, one
        pictures.append(picture)
    return make_case(number, case_id=f"case-{number}", pictures=pictures, **changes)


def found(store: Store, case_id: str, limit: int = 9) -> tuple[list[str], bool]:
    with store.session() as session:
        cases, more = related.same_picture(session, case_id, limit)
    return [one.case_id for one in cases], more


@pytest.mark.parametrize("any_store_url", ["sqlite", "postgresql"], indirect=True)
def test_same_picture(any_store_url: str, make_case: Make) -> None:
    """Other cases with one of the case's pictures are listed once each, newest first; its own never, others neither."""
    with Store(any_store_url) as store:
        store.add(
            [
                of(make_case, 0, "a" * 64, "b" * 64),
                of(make_case, 1, "a" * 64, "b" * 64),
                of(make_case, 2, "c" * 64),
                of(make_case, 3, "b" * 64, "b" * 64),
                of(make_case, 4, None),
                of(make_case, 5),
            ]
        )
        assert found(store, "case-0") == (["case-3", "case-1"], False)
        assert found(store, "case-2") == ([], False)
        assert found(store, "case-4") == found(store, "case-5") == found(store, "no such case") == ([], False)


def test_list_is_bounded(store_url: str, make_case: Make) -> None:
    """Of many cases about one picture the newest few are read, cut to what a list shows, and that there are more."""
    with Store(store_url) as store:
        store.add([of(make_case, number, "a" * 64, question="q" * 5000, answer="a") for number in range(30)])
        assert found(store, "case-7", 3) == (["case-29", "case-28", "case-27"], True)
        assert found(store, "case-29", 29)[1] is False
        with store.session() as session:
            (one,), _ = related.same_picture(session, "case-7", 1)
    assert len(one.question) == 160
