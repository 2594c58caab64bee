"""The schema's history: what the migrations make is what the models say, and no schema is mistaken for another."""

import re
import shutil
import sqlite3
from contextlib import closing

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import NullPool, create_engine, func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from fastrm_monitor.drift.watch import Drift
from fastrm_monitor.errors import StoreError
from fastrm_monitor.records import schema
from fastrm_monitor.records.drift import add_drift
from fastrm_monitor.records.engine import for_writing, open_engine, read_url, transaction
from fastrm_monitor.records.models import Base, Case, DriftValue
from fastrm_monitor.records.store import Store

SECOND = """
import sqlalchemy as sa
from alembic import op
revision = "0003"
down_revision = "0002"
def upgrade():
    with op.batch_alter_table("cases", recreate="always") as cases:
        cases.add_column(sa.Column("colour", sa.String(8), nullable=True))
def downgrade():
    with op.batch_alter_table("cases") as cases:
        cases.drop_column("colour")
"""


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'store.db'}"


@pytest.fixture
def with_second(tmp_path, monkeypatch):
    """Calling it makes the package as it will be with a second migration."""

    def install():
        later = tmp_path / "100% later" / "migrations"
        shutil.copytree(schema.MIGRATIONS, later, ignore=shutil.ignore_patterns("__pycache__"))
        (later / "versions" / "0003_later.py").write_text(SECOND)
        monkeypatch.setattr(schema, "MIGRATIONS", later)

    return install


def path_of(url):
    return url.removeprefix("sqlite:///")


def tables(url):
    with closing(sqlite3.connect(path_of(url))) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def statements(sql):
    sql = re.sub(r"--.*", "", sql)
    return {re.sub(r"\s+", " ", statement).strip() for statement in sql.split(";") if statement.strip()}


def test_migrations_make_what_the_models_say(url):
    """Alembic finds no difference between a migrated database and the models, types and defaults included."""
    schema.upgrade(url)
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_comparison_can_find_a_difference(url):
    """The comparison above is not blind: a missing index and a missing column are seen."""
    schema.upgrade(url)
    with closing(sqlite3.connect(path_of(url))) as connection:
        connection.execute("DROP INDEX ix_cases_created")
        connection.execute("ALTER TABLE reviews DROP COLUMN note")
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert sorted(difference[0] for difference in found) == ["add_column", "add_index"]


def test_postgresql_gets_the_statements_of_the_models():
    """For PostgreSQL the migrations emit exactly the tables and indexes that the models stand for."""
    dialect = postgresql.dialect()
    expected = set()
    for table in Base.metadata.sorted_tables:
        expected |= statements(str(CreateTable(table).compile(dialect=dialect)))
        expected |= {str(CreateIndex(index).compile(dialect=dialect)).strip() for index in table.indexes}
    made = {s for s in statements(schema.sql("postgresql")) if s.startswith("CREATE") and "alembic_version" not in s}
    assert expected == made


def test_up_and_down(url):
    """Down removes all that up made, and up works again afterwards."""
    assert schema.upgrade(url) == schema.head() == schema.current(url) == "0002"
    made = {"alembic_version", "cases", "case_pictures", "drift", "reviews", "traffic"}
    assert tables(url) == made
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        command.downgrade(schema.alembic_config(connection), "base")
    assert tables(url) == {"alembic_version"}
    assert schema.current(url) is None
    Store(url).close()  # as good as empty
    assert tables(url) == made


def test_each_step_goes_up_and_down_with_rows_there(any_store_url, make_case):
    """Every migration can be undone and done again on a filled database, on both engines, and the cases stay."""
    schema.upgrade(any_store_url)
    with Store(any_store_url) as store:
        store.add([make_case(number) for number in range(3)])
        add_drift(store, "host:1", "llava", [Drift("confidence", 0.25, 1e-9, 0.5, 0.125, 1000, 400)])
    engine = open_engine(read_url(any_store_url))
    with transaction(for_writing(engine)) as connection:
        command.downgrade(schema.alembic_config(connection), "0001")
    assert schema.current(any_store_url) == "0001"
    assert schema.upgrade(any_store_url) == schema.head()
    with Store(any_store_url) as store, store.session() as session:
        assert session.scalar(select(func.count()).select_from(Case)) == 3
        assert session.scalar(select(func.count()).select_from(DriftValue)) == 0
    engine.dispose()


def test_upgrade_is_idempotent(url):
    """A second upgrade changes nothing."""
    assert schema.upgrade(url) == schema.upgrade(url)


def test_asking_makes_nothing(url, tmp_path):
    """`current` of a missing SQLite file is None, and the file is still missing."""
    assert schema.current(url) is None
    assert list(tmp_path.iterdir()) == []


def test_older_schema_says_what_to_run(url, with_second):
    """A store of an older version is not touched; the message has the command, which mends it."""
    Store(url).close()
    with_second()
    with pytest.raises(StoreError) as caught:
        Store(url)
    assert str(caught.value) == (
        f"The store {url} has the older schema 0002: run `fastrm-monitor db upgrade --store {url}`."
    )
    assert schema.upgrade(url) == "0003"
    Store(url).close()


def test_newer_schema_says_to_upgrade_the_package(url, with_second, monkeypatch):
    """A store of a newer version is refused, by the store and by the upgrade, and is left as it is."""
    with_second()
    schema.upgrade(url)
    monkeypatch.undo()
    expected = (
        f"The store {url} has the schema 0003, which this version does not know: upgrade fastrm-monitor to the version "
        "that made it."
    )
    for attempt in (Store, schema.upgrade):
        with pytest.raises(StoreError) as caught:
            attempt(url)
        assert str(caught.value) == expected
    assert schema.current(url) == "0003"


def test_foreign_tables_are_left_alone(url):
    """A database of something else is refused; only the explicit command adds our tables, and keeps theirs."""
    with closing(sqlite3.connect(path_of(url))) as connection:
        connection.execute("CREATE TABLE invoices (id INTEGER)")
    with pytest.raises(StoreError, match="holds tables of something else: name an empty database"):
        Store(url)
    assert tables(url) == {"invoices"}
    schema.upgrade(url)
    Store(url).close()
    assert "invoices" in tables(url)


def test_migration_that_copies_a_table_keeps_its_children(url, with_second):
    """Copying `cases` in a later migration must not cascade into the pictures that refer to it."""
    Store(url).close()
    with closing(sqlite3.connect(path_of(url))) as connection:
        connection.execute(
            "INSERT INTO cases VALUES (1,'c','2026-01-01',' r',NULL,'s','m','q','a',NULL,0,NULL,NULL,'{}',1,NULL,0,0,"
            "'p','l',0,NULL,NULL,NULL,0)"
        )
        connection.execute("INSERT INTO case_pictures VALUES (1,1,0,1,1,NULL,NULL,NULL,1,1,x'0000','[]')")
        connection.commit()
    with_second()
    schema.upgrade(url)
    with closing(sqlite3.connect(path_of(url))) as connection:
        assert connection.execute("SELECT count(*) FROM cases").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM case_pictures").fetchone() == (1,)
