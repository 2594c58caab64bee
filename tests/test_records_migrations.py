"""Migrations on databases as they are: from every revision, up and down, on both engines, empty and filled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from alembic import command
from sqlalchemy import MetaData, func, select

from fastrm_monitor.records import schema
from fastrm_monitor.records.engine import open_engine, read_url
from fastrm_monitor.records.models import Case
from fastrm_monitor.records.store import Store
from tests.big import fill

REVISIONS = ["base", *(f"{number:04d}" for number in range(1, int(schema.head())))]
CASES = 60


def downgrade(url: str, revision: str) -> None:
    """As an operator who goes back to an older version does."""
    engine = open_engine(read_url(url))
    with schema.alone(engine) as connection:
        command.downgrade(schema.alembic_config(connection), revision)
    engine.dispose()


def rows(url: str) -> dict[str, int]:
    """The rows of every table that the database has."""
    engine = open_engine(read_url(url))
    with engine.connect() as connection:
        found = MetaData()
        found.reflect(connection)
        counts = {
            table.name: connection.scalar(select(func.count()).select_from(table)) or 0
            for table in found.tables.values()
            if table.name != "alembic_version"
        }
    engine.dispose()
    return counts


def test_every_revision_is_tested() -> None:
    """The revisions below are all that there are before the current one."""
    with_history = [script.revision for script in schema.history()]
    assert sorted(with_history) == [*REVISIONS[1:], schema.head()]


@pytest.mark.parametrize("revision", REVISIONS)
def test_empty_database(any_store_url: str, revision: str) -> None:
    """An empty store goes down to each revision and up again, and takes cases afterwards."""
    schema.upgrade(any_store_url)
    downgrade(any_store_url, revision)
    assert schema.current(any_store_url) == (None if revision == "base" else revision)
    assert schema.upgrade(any_store_url) == schema.head()
    assert set(rows(any_store_url).values()) == {0}


@pytest.mark.parametrize("revision", REVISIONS[1:])
def test_filled_database(any_store_url: str, revision: str, make_case: Callable[..., Case]) -> None:
    """A filled store loses no row of a table that the older schema has, and what a case says stays the same."""
    fill(any_store_url, CASES)
    with Store(any_store_url) as store:
        store.add([make_case(3, question="was it \u00e4?", features={"map_entropy": 0.25})])
    before = rows(any_store_url)
    assert before["cases"] == before["case_pictures"] == CASES + 1
    assert min(before[name] for name in ("reviews", "traffic", "drift")) > 0
    downgrade(any_store_url, revision)
    older = rows(any_store_url)
    assert older == {name: before[name] for name in older}
    schema.upgrade(any_store_url)
    lost = {name for name, count in rows(any_store_url).items() if count != before[name]}
    assert lost <= before.keys() - older.keys()
    with Store(any_store_url) as store, store.session() as session:
        kept = session.scalars(select(Case).where(Case.request_id == "request-3", Case.model == "llava-tiny")).one()
        assert (kept.question, kept.features) == ("was it \u00e4?", {"map_entropy": 0.25})
        assert len(kept.pictures) == 1
