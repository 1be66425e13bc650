"""Statements by operation, connections of the pool, and what the log says of them."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, event, insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool, QueuePool, SingletonThreadPool, StaticPool

from labkit import Lab
from labkit.blog import create_app
from labkit.errors import MonitoringError
from labkit.monitoring import Metrics, database
from labkit.monitoring.database import OPERATIONS, POOL_STATES, operation
from labkit.profiling import record

things = Table("things", MetaData(), Column("id", Integer, primary_key=True), Column("name", String))


@pytest.fixture(name="engine")
def the_engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'things.db'}")
    things.create(engine)
    yield engine
    engine.dispose()


def counted(metrics: Metrics) -> dict[str, float]:
    """Statements by operation; those that are 0 left out."""
    (family,) = (each for each in metrics.registry.collect() if each.name == "app_database_queries")
    return {one.labels["operation"]: one.value for one in family.samples if one.name.endswith("_total")}


def pool(metrics: Metrics) -> list[float | None]:
    value = metrics.registry.get_sample_value
    connections = [value("app_database_pool_connections", {"state": state}) for state in POOL_STATES]
    return [*connections, value("app_database_pool_limit")]


# What a statement does


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 1", "SELECT"),
        ("  \n\tselect * from update_log", "SELECT"),
        ("(SELECT 1) UNION (SELECT 2)", "SELECT"),
        ("-- delete it\n/* insert\n*/ Update t SET a = 1", "UPDATE"),
        ("/* a */ /* b */ -- c\n INSERT INTO t VALUES (1)", "INSERT"),
        ("DELETE FROM t", "DELETE"),
        ("REPLACE INTO t VALUES (1)", "REPLACE"),
        ("MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE", "MERGE"),
        ("CREATE TABLE t (a int)", "CREATE"),
        ("PRAGMA foreign_keys = ON", "PRAGMA"),
        ("SAVEPOINT sa_savepoint_1", "SAVEPOINT"),
        ("RELEASE SAVEPOINT sa_savepoint_1", "RELEASE"),
        ("EXPLAIN ANALYZE DELETE FROM t", "EXPLAIN"),
        ("VACUUM", "OTHER"),
        ("VALUES (1)", "OTHER"),
        ("SELECTED", "OTHER"),
        ("", "OTHER"),
        ("-- nothing but a comment", "OTHER"),
        ("42", "OTHER"),
        ("WITH a AS (SELECT 1) SELECT * FROM a", "SELECT"),
        ("WITH a AS (SELECT 1), b(x, y) AS (SELECT 1, 2) INSERT INTO t SELECT * FROM b", "INSERT"),
        ("with recursive a(n) as (select 1 union all select n + 1 from a) update t set a = 1", "UPDATE"),
        ("WITH gone AS (DELETE FROM t RETURNING id) SELECT count(*) FROM gone", "SELECT"),
        ("WITH a AS MATERIALIZED (SELECT ')' || '''(' || \"(\" FROM x) DELETE FROM t", "DELETE"),
        ("WITH a AS (SELECT $$ ) select $$, $q$ ) $q$) -- ) insert\n UPDATE t SET a = 1", "UPDATE"),
        ("WITH update AS (SELECT 1), delete AS (SELECT 2) SELECT * FROM update", "SELECT"),
        ('WITH "select" AS (SELECT 1) /* select */ INSERT INTO t SELECT 1', "INSERT"),
        ("(WITH a AS (SELECT 1) SELECT * FROM a) UNION SELECT 2", "SELECT"),
        ("WITH", "OTHER"),
        ("WITH a AS (SELECT 1", "OTHER"),
    ],
)
def test_the_first_keyword_says_what_a_statement_does(statement: str, expected: str) -> None:
    assert operation(statement) == expected
    assert operation("/* route='/users' */ " + statement + "\n" + " " * 10_000) == expected


@given(
    st.text()
    | st.lists(st.sampled_from([*"()'\"$,-/* \n", "--", "/*", "*/", "WITH", "a", "AS", "SELECT"])).map("".join)
)
def test_whatever_is_sent_makes_no_new_label(statement: str) -> None:
    assert operation(statement) in OPERATIONS


def test_what_the_application_says_itself_makes_no_new_label() -> None:
    metrics = Metrics()
    for word in ("select", "SELECT", "Vacuum", "'; DROP TABLE users"):
        metrics.track_database_query(word)
    assert counted(metrics) == {"SELECT": 2, "OTHER": 2}


# What counts


def test_each_statement_counts_once_whatever_becomes_of_it(engine: Engine) -> None:
    metrics = Metrics()
    end = metrics.watch_engine(engine)
    with engine.begin() as connection:
        connection.execute(insert(things), [{"id": i} for i in range(1, 200)])  # executemany: one
        connection.execute(select(things)).all()
        connection.exec_driver_sql("UPDATE things SET name = 'x'")
        with pytest.raises(IntegrityError), connection.begin_nested():  # SAVEPOINT and ROLLBACK TO
            connection.execute(insert(things), {"id": 1})
        with pytest.raises(OperationalError):
            connection.execute(text("DELETE FROM nowhere"))
    expected = {"INSERT": 2, "SELECT": 1, "UPDATE": 1, "SAVEPOINT": 1, "ROLLBACK": 1, "DELETE": 1}
    assert counted(metrics) == expected
    end()
    with engine.connect() as connection:
        connection.execute(select(things))
    end()
    assert counted(metrics) == expected


def test_listening_twice_counts_once_and_several_listeners_each_for_themselves(engine: Engine) -> None:
    metrics, other = Metrics(), Metrics()
    ends = [metrics.watch_engine(engine), metrics.watch_engine(engine), Metrics(metrics.registry).watch_engine(engine)]
    other.watch_engine(engine)
    with engine.connect() as connection:
        connection.execute(select(things))
    assert counted(metrics) == counted(other) == {"SELECT": 1}
    ends[1]()
    with engine.connect() as connection:
        connection.execute(select(things))
    assert counted(metrics) == {"SELECT": 1} and counted(other) == {"SELECT": 2}
    metrics.watch_engine(engine)
    with engine.connect() as connection:
        connection.execute(select(things))
    assert counted(metrics) == {"SELECT": 2}


def test_an_async_engine_counts_as_well(tmp_path: Path) -> None:
    metrics = Metrics()

    async def main() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'things.db'}")
        metrics.watch_engine(engine)
        metrics.watch_engine(engine.sync_engine)
        async with engine.begin() as connection:
            await connection.run_sync(things.create)
            await connection.execute(insert(things), [{"id": 1}, {"id": 2}])
            await connection.execute(select(things))
            assert pool(metrics) == [1, 0, 0, 15]
        assert pool(metrics) == [0, 1, 0, 15]
        await engine.dispose()

    asyncio.run(main())
    assert counted(metrics) == {"CREATE": 1, "INSERT": 1, "SELECT": 1}


def test_as_many_as_the_recorder_of_queries_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the blog, in worker threads, with an N+1, and with what fails."""
    metrics = Metrics()
    with Lab(app := create_app(monitored=False), latency=0) as lab:
        metrics.watch_engine(app.state.engine)
        paths = ("/performance/slow-endpoint?sleep_ms=0", "/performance/fast-endpoint", "/users/7", "/stats/global")
        recorded = 0
        for path in paths:
            recorded += lab.queries(path).count
        session = sessionmaker(app.state.engine)()
        with record() as recorder, session:
            session.execute(text("SELECT 1"))
            with pytest.raises(OperationalError):
                session.execute(text("SELECT * FROM nowhere"))
            session.rollback()
        assert recorded > 1_000
        assert sum(counted(metrics).values()) == recorded + recorder.count
        assert counted(metrics) == {"SELECT": recorded + 2}


def test_what_is_no_engine_is_refused(engine: Engine) -> None:
    with pytest.raises(MonitoringError, match=r"sessionmaker.*create_engine"):
        Metrics().watch_engine(sessionmaker(engine))


def test_an_engine_is_not_kept_alive(tmp_path: Path) -> None:
    metrics = Metrics()
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    metrics.watch_engine(engine)
    gone = weakref.ref(engine)
    engine.dispose()
    del engine
    gc.collect()
    assert gone() is None
    assert pool(metrics) == [0, 0, 0, 0]


# The pool


def test_connections_as_the_pool_has_them(tmp_path: Path) -> None:
    metrics = Metrics()
    engine = create_engine(f"sqlite:///{tmp_path / 'a.db'}", pool_size=2, max_overflow=3)
    metrics.watch_engine(engine)
    assert pool(metrics) == [0, 0, 0, 5]
    open_ = [engine.connect() for _ in range(4)]
    assert pool(metrics) == [4, 0, 2, 5]
    for connection in open_:
        connection.close()
    assert pool(metrics) == [0, 2, 0, 5]
    engine.dispose()
    assert pool(metrics) == [0, 0, 0, 5]
    second = create_engine("sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0)
    metrics.watch_engine(second)
    with second.connect():
        assert pool(metrics) == [1, 0, 0, 6], "of all engines together"
    second.dispose()
    unlimited = create_engine("sqlite://", poolclass=QueuePool, max_overflow=-1)
    end = metrics.watch_engine(unlimited)
    assert pool(metrics) == [0, 0, 0, float("inf")]
    end()
    assert pool(metrics) == [0, 0, 0, 6]


@pytest.mark.parametrize("kind", [NullPool, StaticPool, SingletonThreadPool])
def test_a_pool_without_a_queue_shows_nothing_and_raises_nothing(kind: type) -> None:
    metrics = Metrics()
    engine = create_engine("sqlite://", poolclass=kind)
    metrics.watch_engine(engine)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        assert pool(metrics) == [None, None, None, 0]
    assert counted(metrics) == {"SELECT": 1}
    metrics.render()
    engine.dispose()


# The log


def test_the_log_has_statements_but_never_values(
    engine: Engine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(database, "perf_counter", lambda: now[0])

    def wait(*_: Any) -> None:
        now[0] += pause

    event.listen(engine, "before_cursor_execute", wait)
    metrics = Metrics()
    metrics.watch_engine(engine)
    caplog.set_level(logging.DEBUG, "labkit.sql")
    pause = 0.0
    ask: Callable[[str], object]
    with engine.connect() as connection:
        ask = lambda sql: connection.execute(text(sql), {"name": "secret"})  # noqa: E731
        ask("SELECT *\n  FROM things WHERE name = :name")
        pause = 0.2
        ask("SELECT id FROM things WHERE name = :name")
        with pytest.raises(OperationalError):
            ask("SELECT * FROM nowhere WHERE name = :name")
        caplog.set_level(logging.INFO, "labkit.sql")
        pause = 0.0
        ask("SELECT 1 WHERE :name = ''")
    said = [(one.levelname, one.getMessage(), one.seconds) for one in caplog.records if one.name == "labkit.sql"]
    assert said == [
        ("DEBUG", "statement, 0.0 ms: SELECT * FROM things WHERE name = ?", 0.0),
        ("WARNING", "slow statement, 200.0 ms: SELECT id FROM things WHERE name = ?", 0.2),
        ("WARNING", "slow statement, 200.0 ms: SELECT * FROM nowhere WHERE name = ?", 0.2),
    ]
    assert "secret" not in caplog.text


def test_a_simulated_latency_is_part_of_a_statements_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "labkit.sql")
    with Lab(app := create_app(monitored=False), latency=20) as lab:
        Metrics().watch_engine(app.state.engine)
        lab.get("/users/7")
    seconds = [one.seconds for one in caplog.records if one.name == "labkit.sql"]
    assert seconds and min(seconds) >= 0.019


def test_pools_are_counted_while_engines_come_and_go() -> None:
    """A scrape looks at them in a thread of its own."""
    metrics, engine, late = Metrics(), *(create_engine("sqlite://", poolclass=QueuePool) for _ in range(2))

    class Interrupted(weakref.WeakKeyDictionary[Any, Any]):
        def __iter__(self) -> Iterator[Any]:
            for key in super().__iter__():
                metrics.watch_engine(late)  # as another thread may between two steps
                yield key

    metrics._database._engines = Interrupted()
    metrics.watch_engine(engine)
    assert pool(metrics) == [0, 0, 0, 15]
