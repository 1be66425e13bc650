"""What is noted of each statement: when, how long, how many rows, by whom."""

from __future__ import annotations

import asyncio
import linecache
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sqlalchemy import Engine, String, create_engine, event, insert, select, text, update
from sqlalchemy.engine.cursor import BufferedRowCursorFetchStrategy
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

from labkit import settings
from labkit.profiling import _capture
from labkit.profiling.queries import QueryReport, record


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String, unique=True)


def make(url: str = "sqlite://", **options: Any) -> Engine:
    engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False}, **options)
    Base.metadata.create_all(engine)
    with Session(engine) as db:
        db.execute(insert(Thing), [{"name": f"thing {i}"} for i in range(1, 11)])
        db.commit()
    return engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = make()
    yield engine
    engine.dispose()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Clock:
    """Time that passes only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(_capture, "perf_counter", lambda: self.now)

    def tick(self) -> int:
        self.now += 1.0
        return 1


def test_time_covers_the_rows_that_are_computed_while_they_are_fetched(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with engine.connect() as connection, record() as recorder:
        connection.connection.driver_connection.create_function("tick", 0, clock.tick)
        result = connection.execute(text("SELECT tick() FROM things"))
        clock.now += 100.0  # the application's own time, between execute and fetch
        result.fetchone()
        clock.now += 100.0
        result.fetchmany(3)
        result.fetchall()
    (statement,) = recorder.report().statements
    assert (statement.elapsed, statement.rows) == (10.0, 10)


def test_a_round_trip_simulated_by_somebody_who_listened_first_is_measured() -> None:
    program = """
import time
from sqlalchemy import create_engine, event, text
from sqlalchemy.engine import Engine
@event.listens_for(Engine, "before_cursor_execute")
def wait(*_): time.sleep(0.05)
from labkit.profiling.queries import record
with create_engine("sqlite://").connect() as connection, record() as recorder:
    connection.execute(text("SELECT 1"))
raise SystemExit(0 if recorder.report().statements[0].elapsed >= 0.05 else 1)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_rows(engine: Engine) -> None:
    with Session(engine) as db, record() as recorder:
        db.scalars(select(Thing)).all()
        db.scalars(select(Thing).order_by(Thing.id)).first()  # takes one, fetches all
        db.scalar(select(Thing.id).where(Thing.id == -1))
        db.execute(update(Thing).where(Thing.id > 3).values(name=Thing.name + "!"))
        db.execute(insert(Thing), [{"name": "a"}, {"name": "b"}])
        db.execute(select(Thing.id).execution_options(yield_per=5)).all()
        for part in db.execute(select(Thing.id)).yield_per(5).partitions():
            len(part)
        db.rollback()
    assert [s.rows for s in recorder.report().statements] == [10, 10, 0, 7, 2, 12, 12]


def test_executemany_is_one_statement(engine: Engine) -> None:
    with Session(engine) as db, record() as recorder:
        db.execute(insert(Thing), [{"name": f"new {i}"} for i in range(500)])
        db.add_all([Thing(name=f"newer {i}") for i in range(20)])
        db.flush()
        db.rollback()
    first, *others = recorder.report().statements
    assert (first.many, first.rows, first.values) == (True, 500, ("new 0",))
    assert {(s.many, s.rows) for s in others} == {(True, None)}


def test_the_application_notices_nothing(engine: Engine) -> None:
    def work() -> list[Any]:
        with engine.begin() as connection:
            result = connection.execute(insert(Thing.__table__).values(name="x"))
            seen: list[Any] = [result.inserted_primary_key, result.rowcount]
            raw = connection.execute(text("SELECT id, name FROM things ORDER BY id"))
            cursor: Any = raw.cursor
            cursor.arraysize = 3
            seen += [cursor.arraysize, [column[0] for column in cursor.description], raw.keys(), raw.all()]
            seen.append(pd.read_sql("SELECT count(*) AS n FROM things", connection).to_dict())
            seen.append(connection.execute(select(Thing.id).limit(3)).scalars().partitions(2).__next__())
            connection.rollback()
        return [str(one) for one in seen]

    plain = work()
    with record():
        assert work() == plain


def test_parameters_are_shortened_but_kept(engine: Engine) -> None:
    word, number = "x" * 1000, 3
    with Session(engine) as db, record() as recorder:
        db.scalar(select(Thing.id).where(Thing.name == word, Thing.id == number))
        db.scalars(select(Thing).where(Thing.id.in_(range(600)))).all()
    one, other = recorder.report().statements
    assert one.parameters == ("x" * 39 + "…", 3) and one.values == (word, 3)
    assert other.parameters == (*range(20), "…") and len(other.values) == 600
    assert word not in repr(one)


def test_an_engine_may_hide_its_parameters() -> None:
    engine = make(hide_parameters=True)
    word = "".join(("sec", "ret"))
    with Session(engine) as db, record() as recorder:
        db.scalar(select(Thing.id).where(Thing.name == word))
    report = recorder.report()
    assert word not in repr(report.statements) + str(report.df.to_dict()) + report._repr_html_()
    engine.dispose()


def test_errors_are_recorded(engine: Engine) -> None:
    with Session(engine) as db, record() as recorder:
        with pytest.raises(OperationalError):
            db.execute(text("SELECT nothing"))
        with pytest.raises(IntegrityError):
            db.execute(insert(Thing).values(name="thing 1"))
    report = recorder.report()
    assert [s.error for s in report.statements] == ["OperationalError", "IntegrityError"]
    assert list(report.df["error"]) == ["OperationalError", "IntegrityError"]


def test_a_statement_that_a_listener_forbids_is_recorded_as_well(engine: Engine) -> None:
    def forbid(*_: Any) -> None:
        raise TimeoutError

    event.listen(engine, "before_cursor_execute", forbid)
    with engine.connect() as connection, record() as recorder, pytest.raises(TimeoutError):
        connection.execute(text("SELECT 1"))
    assert [s.error for s in recorder.report().statements] == ["TimeoutError"]


def test_several_engines_and_no_password() -> None:
    engines = [make(), make("sqlite:///file:x?mode=memory&uri=true")]
    with record() as recorder:
        for one in engines:
            with one.connect() as connection:
                connection.execute(text("SELECT 1"))
    assert len({s.engine for s in recorder.report().statements}) == 2
    for one in engines:
        one.dispose()


def test_the_line_is_the_users(engine: Engine) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "engine": engine, "text": text}
    cell = (
        "def ask():\n"
        "    with engine.connect() as connection:\n"
        "        connection.execute(\n"
        "            text('SELECT 1')\n"
        "        )\n"
    )
    exec(compile(cell, "<cell 7>", "exec"), namespace)
    with record() as recorder:
        namespace["ask"]()
        pd.read_sql("SELECT 1", engine)
    first, *_, second = (s.site for s in recorder.report().statements)
    assert first == ("<cell 7>", 3, "ask")
    assert second and second.file == __file__ and "read_sql" in linecache.getline(__file__, second.line)


def test_each_asks_for_itself_however_often_it_was_asked_before(engine: Engine) -> None:
    question = text("SELECT count(*) FROM things")

    def ask(db: Session) -> None:
        db.execute(question)

    def deeper(db: Session, depth: int) -> None:
        deeper(db, depth - 1) if depth else ask(db)

    def on_connection(db: Session) -> None:
        db.connection().execute(question)

    with Session(engine) as db, record() as recorder:
        for depth in (0, 9, 0, 20):
            deeper(db, depth)
        for _ in range(3):
            db.scalar(question)
            (lambda: (lambda: on_connection(db))())()  # from as deep, by way of somebody else
            db.connection().exec_driver_sql("SELECT count(*) FROM things")
    statements = recorder.report().statements
    here = "test_each_asks_for_itself_however_often_it_was_asked_before"
    assert [s.site and s.site.function for s in statements] == ["ask"] * 4 + [here, "on_connection", here] * 3
    assert len({s.site for s in statements}) == 4
    assert len({s.path for s in statements[:4]}) == 2  # straight, and by a recursion


def test_a_stack_may_be_shorter_than_the_last_one_that_asked_the_same(engine: Engine) -> None:
    def ask(db: Session, sql: str) -> None:
        db.connection().exec_driver_sql(sql)

    with Session(engine) as db, record() as recorder:
        db.query(Thing).count()  # a dozen frames of SQLAlchemy's
        (first,) = recorder.report().statements
        thread = threading.Thread(target=copy_context().run, args=(ask, db, first.sql))
        thread.start()
        thread.join()
    assert [s.site and s.site.function for s in recorder.report().statements][1:] == ["ask"]


def test_rows_are_fetched_as_without_a_recorder(tmp_path: Path) -> None:
    engine = make(f"sqlite:///{tmp_path}/x.sqlite3")
    with Session(engine) as db, record() as recorder:
        streamed = db.connection().execution_options(stream_results=True, max_row_buffer=4).execute(select(Thing.id))
        assert isinstance(streamed.cursor_strategy, BufferedRowCursorFetchStrategy)
        seen = [row[0] for row in streamed]
        result = db.connection().execute(select(Thing.id))
        rest = [result.fetchone(), *result.fetchmany(2), *result.yield_per(3)]
        assert result.fetchone() is None
        given = db.execute(insert(Thing).returning(Thing.name), [{"name": "a"}, {"name": "b"}]).all()
        db.rollback()
    rows = [s.rows for s in recorder.report().statements]
    assert (len(seen), len(rest), rows[:2], given) == (10, 10, [10, 10], [("a",), ("b",)])
    engine.dispose()


def test_an_error_while_fetching_is_sqlalchemys(engine: Engine) -> None:
    with engine.connect() as connection, record() as recorder:
        connection.connection.driver_connection.create_function("refuse", 1, lambda value: 1 / (5 - value))
        with pytest.raises(OperationalError):
            connection.execute(text("SELECT refuse(id) FROM things")).all()
    assert [s.error for s in recorder.report().statements] == ["OperationalError"]


def test_each_context_has_its_own(engine: Engine) -> None:
    def ask() -> None:
        with Session(engine) as db:
            db.scalar(select(Thing.id))

    with record() as outer:
        ask()
        with record() as inner:
            ask()
        stranger = threading.Thread(target=ask)
        stranger.start()
        stranger.join()
        assert (outer.count, inner.count) == (2, 1)
    ask()
    assert (outer.count, inner.count) == (2, 1)


@pytest.mark.anyio
async def test_async_engine_tasks_and_threads(engine: Engine, tmp_path: Any) -> None:
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/x.sqlite3")
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Thing), [{"name": "a"}, {"name": "b"}])
    release = asyncio.Event()

    async def ask() -> None:
        async with AsyncSession(async_engine) as db:
            (await db.scalars(select(Thing))).all()
            async for _ in await db.stream(select(Thing.id).execution_options(yield_per=1)):
                pass

    async def late() -> None:
        await release.wait()
        await ask()

    def in_thread() -> None:
        with Session(engine) as db:
            db.scalars(select(Thing)).all()

    with record() as recorder:
        await ask()
        await asyncio.create_task(ask())
        await asyncio.to_thread(in_thread)
        task = asyncio.create_task(late())
    release.set()
    await task  # began inside, ran outside
    report = recorder.report()
    assert [s.rows for s in report.statements] == [2, 2, 2, 2, 10]
    assert [s.site and s.site.function for s in report.statements] == ["ask"] * 4 + ["in_thread"]
    await async_engine.dispose()


@pytest.fixture
def report(engine: Engine) -> QueryReport:
    with Session(engine) as db, record() as recorder:
        db.scalars(select(Thing)).all()
        for i in range(1200):
            db.scalar(select(Thing.name).where(Thing.name != "<b>", Thing.id == i))
    return recorder.report("/things", elapsed=2.5, latency_ms=0.5)


def test_report(report: QueryReport) -> None:
    assert report.count == 1201 == len(report.df)
    assert list(report.by_site()["count"]) == [1200, 1]
    assert report.by_site()["rows"].sum() == 20
    head, finding = repr(report).splitlines()
    assert head == "QueryReport: 1.201 consultas, 2,50 s (0,5 ms de latencia simulada en cada consulta)"
    assert finding.startswith("  n+1 ×1.200 en tests/test_queries.py:") and "select(Thing.id" in finding
    settings.set_language("en")
    assert repr(report).startswith("QueryReport: 1,201 statements, 2.50 s (0.5 ms of simulated latency each)")


def test_html_is_escaped_and_shows_the_line(report: QueryReport) -> None:
    page = report._repr_html_()
    assert "&quot;&lt;b&gt;&quot;" in page and "<b>" not in page
    assert "corrió 1.200 veces" in page and "Thing.id.in_(ids)" in page


def test_plot(report: QueryReport) -> None:
    figure = report.plot()
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "1.201 consultas desde 2 líneas"
    assert len(axes.collections) == 2
    assert [label.get_text().splitlines()[1] for label in axes.get_yticklabels()] == ["×1.200", "×1"]
    assert len(figure.alt.split()) >= 5
    assert figure.png().startswith(b"\x89PNG")


def test_nothing_was_asked() -> None:
    with record() as recorder:
        pass
    report = recorder.report()
    assert (report.count, report.findings, len(report.df), len(report.by_site())) == (0, (), 0, 0)
    assert repr(report).startswith("QueryReport: 0 consultas")
    assert report.plot().png() and report._repr_html_()
