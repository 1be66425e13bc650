"""Plans of SQLite and PostgreSQL, in words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    DateTime,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from labkit import settings
from labkit.errors import MeasurementError, ServiceError
from labkit.profiling.plans import Plan, activity, explain, top_statements
from labkit.profiling.queries import record
from labkit.services import postgres

metadata = MetaData()
notes = Table(
    "notes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("box", Integer),
    Column("body", Text, default="new"),
    Column("written", DateTime),
)
ROWS = 3000


def fill(engine: Engine) -> Engine:
    metadata.create_all(engine)
    with engine.begin() as connection:
        now = datetime(2026, 1, 1)
        connection.execute(insert(notes), [{"box": i % 100, "body": "x", "written": now} for i in range(ROWS)])
    return engine


def index(engine: Engine, name: str = "ix_box") -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE INDEX {name} ON notes (box)"))
        connection.execute(text("VACUUM" if engine.dialect.name == "sqlite" else "VACUUM ANALYZE notes"))


def rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).select_from(notes)).scalar_one()


@pytest.fixture
def sqlite(tmp_path: Any) -> Iterator[Engine]:
    engine = fill(create_engine(f"sqlite:///{tmp_path}/notes.sqlite3"))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    try:
        with postgres.start() as server:
            yield server.url
    except ServiceError as error:
        pytest.skip(str(error))


@pytest.fixture
def pg(server: str) -> Iterator[Engine]:
    engine = create_engine(server, poolclass=NullPool)
    metadata.drop_all(engine)
    yield fill(engine)
    engine.dispose()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


in_box = select(func.count()).select_from(notes).where(notes.c.box == 5)


def test_scan_and_index_on_sqlite(sqlite: Engine) -> None:
    plan = explain(sqlite, in_box)
    assert (plan.scans, plan.indexes, plan.text) == (("notes",), (), "SCAN notes")
    assert plan.says == "SCAN notes: lee las 3.000 filas."
    index(sqlite)
    plan = explain(sqlite, in_box)
    assert (plan.scans, plan.indexes) == ((), ("ix_box",))
    assert plan.says == (
        "SEARCH notes USING COVERING INDEX ix_box (box=?): el índice ix_box basta y la tabla no se lee."
    )
    settings.set_language("en")
    assert plan.says.endswith("the index ix_box is enough, the table is not touched.")


@pytest.mark.parametrize(
    ("sql", "how", "table"),
    [
        ("SELECT * FROM notes n WHERE n.body = 'x'", "scan", "notes"),
        ('SELECT * FROM "notes" AS n WHERE n.body = 1', "scan", "notes"),
        ("SELECT * FROM notes WHERE box = 1", "seek", "notes"),
        ("SELECT * FROM notes WHERE id = 1", "seek", "notes"),
        ("SELECT box FROM notes ORDER BY box LIMIT 3", "walk", "notes"),
        ("SELECT count(*) FROM notes", "walk", "notes"),
        ("SELECT * FROM (SELECT box, count(*) AS n FROM notes GROUP BY box) q WHERE n > 1", "walk", "notes"),
        ("SELECT 1", "", ""),
    ],
)
def test_how_sqlite_reads(sqlite: Engine, sql: str, how: str, table: str) -> None:
    index(sqlite)
    steps = explain(sqlite, sql).steps
    assert [(step.how, step.table) for step in steps] == ([(how, table)] if how else [])


def test_an_index_in_the_wrong_order_is_walked_and_not_searched(sqlite: Engine) -> None:
    with sqlite.begin() as connection:
        connection.execute(text("CREATE INDEX ix_wrong ON notes (body, box)"))
    plan = explain(sqlite, in_box)
    assert (plan.scans, plan.walks, plan.indexes) == ((), ("notes",), ("ix_wrong",))
    assert "recorre el índice ix_wrong entrada por entrada" in plan.says and "◆" in plan._repr_html_()
    index(sqlite)
    plan = explain(sqlite, in_box)
    assert plan.walks == () and "●" in plan._repr_html_()


def test_an_index_made_for_one_statement_is_a_missing_index(sqlite: Engine) -> None:
    plan = explain(sqlite, "SELECT count(*) FROM notes a JOIN notes b ON a.body = b.body")
    assert [step.how for step in plan.steps] == ["scan", "build"]
    assert plan.scans == ("notes",) and "falta un índice" in plan.says


def test_everything_that_can_be_asked(sqlite: Engine) -> None:
    with record() as recorder, sqlite.connect() as connection:
        connection.execute(select(notes).where(notes.c.box.in_([1, 2]), notes.c.written < datetime.now()))
        connection.execute(update(notes).where(notes.c.box == 3).values(body="y"))
        connection.execute(insert(notes), [{"box": 1}, {"box": 2}])
    index(sqlite)
    asked: list[tuple[Any, Any]] = [
        *((statement, None) for statement in recorder.report().statements[:2]),
        ("SELECT * FROM notes WHERE box = :box", {"box": 3}),
        ("SELECT * FROM notes WHERE box = ?", (3,)),
        (text("SELECT * FROM notes WHERE box = :box"), {"box": 3}),
        (select(notes).where(notes.c.box.in_([1, 2]), notes.c.written < datetime.now()), None),
        (delete(notes).where(notes.c.box == 3), None),
        (update(notes).where(notes.c.box == 3).values(body="y"), None),
    ]
    for statement, parameters in asked:
        assert explain(sqlite, statement, parameters).indexes == ("ix_box",), statement
    assert explain(sqlite, recorder.report().statements[2]).steps == ()
    assert explain(sqlite, insert(notes).values(box=1)).steps == ()
    assert rows(sqlite) == ROWS


def test_a_connection_is_left_as_it_was(sqlite: Engine) -> None:
    with sqlite.connect() as connection:
        explain(connection, in_box)
        assert not connection.in_transaction()
        connection.execute(delete(notes).where(notes.c.box == 1))
        explain(connection, in_box)
        assert connection.in_transaction()
        assert connection.execute(select(func.count()).select_from(notes)).scalar() == ROWS - ROWS // 100


def test_frame_text_and_html(sqlite: Engine) -> None:
    plan = explain(sqlite, "SELECT * FROM notes WHERE body = '<b>'")
    assert plan.df.to_dict("records") == [
        {"how": "scan", "table": "notes", "index": "", "rows": ROWS, "detail": "SCAN notes"}
    ]
    assert repr(plan) == "Plan: SCAN notes: lee las 3.000 filas."
    assert "&lt;b&gt;" in plan._repr_html_() and "<b>" not in plan._repr_html_()
    assert list(Plan("SELECT 1", "", ()).df) == list(plan.df)
    assert Plan("SELECT 1", "", ()).says == "no lee ninguna tabla."


@pytest.mark.parametrize(
    ("statement", "word"),
    [("SELEC 1", "syntax error"), ("SELECT * FROM nowhere", "nowhere"), ("SELECT ?", "parámetro")],
)
def test_a_refused_statement_is_explained(sqlite: Engine, statement: str, word: str) -> None:
    with pytest.raises(MeasurementError, match=word):
        explain(sqlite, statement)


def test_what_only_postgresql_has(sqlite: Engine) -> None:
    for ask in (activity, top_statements):
        with pytest.raises(MeasurementError, match=r"sqlite.*postgresql"):
            ask(sqlite)


@pytest.mark.anyio
async def test_async_engine(sqlite: Engine) -> None:
    engine = create_async_engine(str(sqlite.url).replace("sqlite:", "sqlite+aiosqlite:"))
    with pytest.raises(MeasurementError, match="run_sync"):
        explain(engine, in_box)  # type: ignore[arg-type]
    async with engine.connect() as connection:
        assert (await connection.run_sync(explain, in_box)).scans == ("notes",)
    await engine.dispose()


def test_scan_and_index_on_postgresql(pg: Engine) -> None:
    plan = explain(pg, in_box)
    assert (plan.scans, plan.indexes) == (("notes",), ())
    assert plan.says.startswith("Seq Scan notes: lee las 3.000 filas; ") and plan.says.endswith(" páginas.")
    assert plan.ms is not None and plan.pages is not None and plan.pages > 0
    assert plan.text.splitlines()[1].strip() == "Seq Scan notes (3,000 rows)"
    index(pg)
    plan = explain(pg, in_box)
    assert (plan.scans, plan.indexes, plan.steps[0].how, plan.steps[0].rows) == ((), ("ix_box",), "cover", 30)
    plan = explain(pg, select(notes).where(notes.c.box == 5))
    assert [(s.how, s.table, s.index) for s in plan.steps] == [("seek", "notes", "ix_box")]
    assert explain(pg, "SELECT box FROM notes ORDER BY box LIMIT 3").steps[0].how == "walk"


def test_whatever_postgresql_ran_is_rolled_back(pg: Engine) -> None:
    statement = delete(notes).where(notes.c.box == 5)
    assert explain(pg, statement).ms is None
    assert explain(pg, statement, analyze=True).ms is not None
    assert explain(pg, "WITH gone AS (DELETE FROM notes RETURNING id) SELECT count(*) FROM gone").ms is None
    assert explain(pg, insert(notes).values(box=1), analyze=True).ms is not None
    with record() as recorder, pg.connect() as connection:
        connection.execute(statement)
    assert explain(pg, recorder.report().statements[0]).scans == ("notes",)
    assert rows(pg) == ROWS


def test_a_transaction_under_way_survives_a_refusal(pg: Engine) -> None:
    with pg.connect() as connection:
        connection.execute(delete(notes).where(notes.c.box == 1))
        with pytest.raises(MeasurementError, match="nowhere"):
            explain(connection, "SELECT * FROM nowhere WHERE id = :id", {"id": 1})
        assert connection.execute(select(func.count()).select_from(notes)).scalar() == ROWS - ROWS // 100


def test_what_postgresql_does_now_and_did(pg: Engine) -> None:
    assert list(activity(pg)) == ["pid", "state", "wait_event_type", "wait_event", "query", "seconds"]
    with pg.connect() as idle:
        idle.execute(text("SELECT 12345 AS waiting"))
        seen = activity(pg)
        assert seen[seen["query"].str.contains("waiting")]["state"].tolist() == ["idle in transaction"]
        for _ in range(7):
            idle.execute(in_box)
    top = top_statements(pg, most=100)
    assert top[top["query"].str.contains("notes.box = ")]["calls"].sum() >= 7
    assert not top["query"].str.contains("PASSWORD").any()
    assert len(top_statements(pg, most=2)) == 2


def test_without_the_extension_there_is_a_remedy(pg: Engine) -> None:
    with pg.begin() as connection:
        connection.execute(text("DROP EXTENSION pg_stat_statements"))
    try:
        with pytest.raises(MeasurementError, match="CREATE EXTENSION pg_stat_statements"):
            top_statements(pg)
    finally:
        with pg.begin() as connection:
            connection.execute(text("CREATE EXTENSION pg_stat_statements"))
