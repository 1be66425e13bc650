"""SQL past the limit is the limit's, whatever thread asks for it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from labkit import Lab, _threads, faults
from labkit.errors import RequestTimeout
from labkit.profiling.queries import record


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'a.sqlite3'}")
    yield engine
    engine.dispose()


class Clock(SimpleNamespace):
    """Stands still at noon until a request has run some statements."""

    def __init__(self) -> None:
        super().__init__(now=0.0, sleep=lambda seconds: None)

    def monotonic(self) -> float:
        return float(self.now)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_statement_past_the_limit_is_a_timeout_and_no_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    address = f"{tmp_path / 'a.sqlite3'}"
    engine, other = create_engine(f"sqlite:///{address}"), create_async_engine(f"sqlite+aiosqlite:///{address}")
    clock = Clock()
    monkeypatch.setattr(faults, "time", clock)
    app = FastAPI()

    @app.get("/sync")
    def sync() -> None:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            clock.now = float("inf")  # the guard, which has a clock of its own, sees nothing
            connection.execute(text("SELECT 2"))

    @app.get("/async")
    async def asynchronous() -> None:
        async with other.connect() as connection:
            clock.now = float("inf")
            await connection.execute(text("SELECT 2"))

    says = r"consulta SQL seguía en marcha en .*test_faults_late.py:\d+"
    with Lab(app, latency=0) as lab:
        with pytest.raises(RequestTimeout, match=says):
            lab.get(f"/{kind}")
        lab.run(lambda client: other.dispose())
    engine.dispose()


def test_sql_in_an_executor_counts(engine: Engine) -> None:
    app = FastAPI()

    def ask(number: int) -> Any:
        with engine.connect() as connection:
            return connection.execute(text("SELECT :n"), {"n": number}).scalar_one()

    @app.get("/executor")
    async def executor() -> list[int]:
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(None, ask, number) for number in range(3)]

    with Lab(app) as lab, record() as outside:
        assert lab.get("/executor").queries == 3
        assert lab.queries("/executor").count == 3
    assert outside.count == 6


def test_a_worker_that_reports_its_result_is_not_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception thrown in there would end anyio's thread, with noise."""
    from contextvars import copy_context

    context = copy_context()
    for module, found in (("asyncio.base_events", []), ("queue", []), ("threading", [7]), ("__main__", [7])):
        run = SimpleNamespace(
            f_code=SimpleNamespace(co_qualname="WorkerThread.run"), f_locals={"context": context}, f_back=None
        )
        inner = SimpleNamespace(f_code=SimpleNamespace(co_qualname="inner"), f_globals={"__name__": module}, f_back=run)
        monkeypatch.setattr(sys, "_current_frames", lambda inner=inner: {7: inner})
        assert _threads.workers(lambda each: each is context) == found


@pytest.mark.parametrize(("late", "last"), [(0.0001, 0.0004), (0.05, 0.00025), (0.0, 0.0005)])
def test_what_a_timer_is_late_is_taken_off_the_next_pause(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, late: float, last: float
) -> None:
    """So that each statement pays what was promised; a busy machine's delay is its own and stays on top."""
    clock, naps = Clock(), []

    def sleep(seconds: float) -> None:
        assert seconds >= 0
        naps.append(seconds)
        clock.now += seconds + late

    clock.sleep = sleep
    monkeypatch.setattr(faults, "time", clock)
    app = FastAPI()

    @app.get("/many")
    def many() -> None:
        with engine.connect() as connection:
            for _ in range(5):
                connection.execute(text("SELECT 1"))

    with Lab(app, time_limit=1e6) as lab:
        for _ in range(2):
            lab.get("/many")
        assert naps == pytest.approx([0.0005, *[last] * 4] * 2)
        lab.latency(0.01)
        naps.clear()
        lab.get("/many")
        assert naps[0] == pytest.approx(0.00001) and all(nap >= 0 for nap in naps)
