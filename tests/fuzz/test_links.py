"""Whatever stands in a link into the dashboard is looked for, and shown inert."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote_from_bytes, urlencode
from uuid import UUID

import pytest
import streamlit
from hypothesis import given
from hypothesis import strategies as st
from streamlit.runtime.state.query_params import _parse_query_string

from fastrm_monitor.dashboard import queries, related, state, words
from fastrm_monitor.records import claims
from fastrm_monitor.records.store import Store
from tests import fuzzing, pages
from tests.conftest import drawn_case
from tests.fuzzing import TALLY, World, budget

PARAMETERS = ("case", "kind", "state", "order", "range", "reviewer", "page", "_")


@st.composite
def addresses(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Parameters as they stand in an address, some of them several times."""
    known = ("open", "all", "flagged", "newest", "7d", "24h", str(UUID(int=1)), str(UUID(int=3)), "nobody")
    names = st.just("case") | st.sampled_from(PARAMETERS[:5]) | st.sampled_from(PARAMETERS) | fuzzing.texts
    names = names.filter(lambda name: not name.lower().startswith("embed"))  # Streamlit keeps these from scripts
    said = st.sampled_from(known) | fuzzing.texts | st.sampled_from(fuzzing.NUMBERS)
    return draw(st.lists(st.tuples(names, said), max_size=5))


def query_of(parameters: list[tuple[str, str]], spoil: bytes = b"") -> str:
    """The query of an address, as a browser writes it, or spoilt."""
    pairs = [
        (name.encode("utf-8", "surrogatepass"), value.encode("utf-8", "surrogatepass")) for name, value in parameters
    ]
    return urlencode(pairs) + quote_from_bytes(spoil, safe="&=%+;")


def test_no_character(world: World, served: Store) -> None:
    """A link with a NUL, which PostgreSQL does not take, names no case, like any other wrong link."""
    for query in ("case=%00", f"case=%00{UUID(int=99)}"):
        check_link(served, query)


def check_link(store: Store, query: str) -> None:
    """What the pages ask of a link: a case that there is, or none, and what they show of it is inert."""
    streamlit.query_params.from_dict(_parse_query_string(query))
    wanted = state.linked_case()
    with store.session() as session:
        view = queries.case(session, wanted)
        others, _ = related.same_picture(session, wanted, 6)
        queries.place(session, queries.Queue(), wanted, "session")
        queries.step(session, queries.Queue(), wanted, forward=True, seat="session")
    assert view is None or view.case_id == wanted
    assert view is not None or others == []
    assert claims.claim(store, wanted, wanted, "session") is None
    shown = words.inert(f"There is no case {wanted[:64]} in this store.")
    assert not re.search('<(?!/?bdi|span class="frm-mark"|/span)', shown)
    left = set(shown) - set("\n\t\u200c\u200d")
    assert not {unicodedata.category(one) for one in left} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@budget(few=60, many=1500)
@given(parameters=addresses(), spoil=st.binary(max_size=8))
def test_links(world: World, parameters: list[tuple[str, str]], spoil: bytes) -> None:
    """Any text in any parameter of a link is looked for as a case and not found, or found, and shown inert."""
    TALLY["links"] += 1
    with world.contained(), Store(f"sqlite:///{world.work / 'store.db'}") as store:
        check_link(store, query_of(parameters, spoil))


@budget(few=10, many=300)
@given(parameters=addresses(), spoil=st.binary(max_size=8))
def test_links_on_postgresql(served: Store, parameters: list[tuple[str, str]], spoil: bytes) -> None:
    """So it is on PostgreSQL, which does not take every character."""
    TALLY["links, PostgreSQL"] += 1
    check_link(served, query_of(parameters, spoil))


@pytest.fixture(scope="module")
def served(postgres: Any) -> Iterator[Store]:
    """A store on PostgreSQL with a few cases."""
    postgres.psql("CREATE DATABASE fuzzed")
    with Store(postgres.get_uri("fuzzed")) as store:
        store.add([drawn_case(n) for n in range(3)])
        yield store
    postgres.psql("DROP DATABASE fuzzed WITH (FORCE)")


@pytest.mark.parametrize("page", ["", pages.QUEUE, pages.CASE, pages.HEALTH])
@budget(few=1, many=12)
@given(parameters=addresses())
def test_pages(world: World, monkeypatch: pytest.MonkeyPatch, page: str, parameters: list[tuple[str, str]]) -> None:
    """Every page opens by any link, and runs nothing that stands in it."""
    TALLY["pages"] += 1
    monkeypatch.setenv("FASTRM_STORE", f"sqlite:///{world.work / 'store.db'}")
    linked = [*parameters, ("case", "<script>alert(1)</script>"), ("case", str(UUID(int=1)))][-4:]
    # As Streamlit reads an address: it has no lone surrogates, which the test's own way in would not take.
    together: dict[str, Any] = dict(_parse_query_string(query_of(linked)))
    together.pop("page", None)  # `opened` has a parameter of that name
    try:
        with world.contained():
            at = pages.opened(page, **together)
            assert "alert(1)</script>" not in pages.shown(at)
    finally:
        streamlit.cache_resource.clear()
