"""The schema's history: what the migrations make is what the models say, and no schema is mistaken for another."""

import shutil
import sqlite3
from contextlib import closing

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import NullPool, create_engine

from fastrm_monitor.errors import StoreError
from fastrm_monitor.records import schema
from fastrm_monitor.records.engine import open_engine, read_url, transaction
from fastrm_monitor.records.models import Base
from fastrm_monitor.records.store import Store

HEAD = schema.head()
SECOND = """
import sqlalchemy as sa
from alembic import op
revision = "9999"
down_revision = "HEAD"
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
    """Calling it makes the package as it will be with one migration more."""

    def install():
        later = tmp_path / "100% later" / "migrations"
        shutil.copytree(schema.MIGRATIONS, later, ignore=shutil.ignore_patterns("__pycache__"))
        (later / "versions" / "9999_later.py").write_text(SECOND.replace("HEAD", HEAD))
        monkeypatch.setattr(schema, "MIGRATIONS", later)

    return install


def path_of(url):
    return url.removeprefix("sqlite:///")


def tables(url):
    with closing(sqlite3.connect(path_of(url))) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def differences(url):
    """What Alembic finds different between a database and the models."""
    engine = create_engine(read_url(url), poolclass=NullPool)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        return compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata)


def test_migrations_make_what_the_models_say(any_store_url):
    """Alembic finds no difference between a migrated database and the models, types and defaults included."""
    schema.upgrade(any_store_url)
    assert differences(any_store_url) == []


def test_comparison_can_find_a_difference(url):
    """The comparison above is not blind: a missing index and a missing column are seen."""
    schema.upgrade(url)
    with closing(sqlite3.connect(path_of(url))) as connection:
        connection.execute("DROP INDEX ix_cases_created")
        connection.execute("ALTER TABLE reviews DROP COLUMN note")
    assert sorted(difference[0] for difference in differences(url)) == ["add_column", "add_index"]


def test_statements_for_a_database_owner(postgres):
    """The SQL that is printed for PostgreSQL makes, run by hand, exactly what the models stand for."""
    postgres.psql("CREATE DATABASE by_hand")
    url = postgres.get_uri("by_hand")
    engine = open_engine(read_url(url))
    with transaction(engine) as connection:
        connection.exec_driver_sql(schema.sql("postgresql"))
    engine.dispose()
    assert differences(url) == []
    Store(url).close()
    postgres.psql("DROP DATABASE by_hand WITH (FORCE)")


def test_up_and_down(url):
    """Down removes all that up made, and up works again afterwards."""
    assert schema.upgrade(url) == schema.head() == schema.current(url)
    made = tables(url)
    assert made == {"alembic_version", *Base.metadata.tables}
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        command.downgrade(schema.alembic_config(connection), "base")
    assert tables(url) == {"alembic_version"}
    assert schema.current(url) is None
    Store(url).close()  # as good as empty
    assert tables(url) == made


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
        f"The store {url} has the older schema {HEAD}: run `fastrm-monitor db upgrade --store {url}`."
    )
    assert schema.upgrade(url) == "9999"
    Store(url).close()


def test_newer_schema_says_to_upgrade_the_package(url, with_second, monkeypatch):
    """A store of a newer version is refused, by the store and by the upgrade, and is left as it is."""
    with_second()
    schema.upgrade(url)
    monkeypatch.undo()
    expected = (
        f"The store {url} has the schema 9999, which this version does not know: upgrade fastrm-monitor to the version "
        "that made it."
    )
    for attempt in (Store, schema.upgrade):
        with pytest.raises(StoreError) as caught:
            attempt(url)
        assert str(caught.value) == expected
    assert schema.current(url) == "9999"


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


def test_migration_that_copies_a_table_keeps_its_children(url, with_second, make_case):
    """Copying `cases` in a later migration must not cascade into the pictures that refer to it."""
    with Store(url) as store:
        store.add([make_case(1)])
    with_second()
    schema.upgrade(url)
    with closing(sqlite3.connect(path_of(url))) as connection:
        assert connection.execute("SELECT count(*) FROM cases").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM case_pictures").fetchone() == (1,)
