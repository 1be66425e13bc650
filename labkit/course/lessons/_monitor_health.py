"""The checks of the health endpoint of lesson 03: one part (3.5), and what is made of all parts (3.6)."""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psutil
from fastapi import FastAPI
from sqlalchemy import create_engine, make_url, text

from labkit.asgi import Reply
from labkit.course.checks import Context, Verdict, almost, done
from labkit.course.lessons._cache import rebound
from labkit.course.lessons._monitor_demo import PATIENCE, leaks, named, scenarios
from labkit.course.lessons._monitor_middleware import _log as logged
from labkit.errors import RequestError, ServiceError
from labkit.lab import Lab

PATH = "/check/health"
HELD = 2.0
"""Seconds for which a part of the check does not answer; a probe gives it up by then."""

LATE = 1.5
"""Seconds from which a probe is too late; the limit is 1 s, and a machine that stands still is not the learner's."""

STALL = 0.5
"""Seconds without a turn of the loop from which it is said to stand still."""

HOST, PORT, ROLE = "db-7.internal", "5433", "blog_admin"
SECRETS = {"host": HOST, "port": PORT, "role": ROLE}
REFUSED = (
    f'connection to server at "{HOST}", port {PORT} failed: FATAL: password authentication failed for user "{ROLE}"'
)
KEYS = {"status", "timestamp", "checks"}
SYSTEM = {"memory_usage", "disk_usage", "cpu_usage"}

Scripted = dict[str, str]


class Refused(Exception):
    """What a part of the check raises."""


# --- 3.5 one part: T44, T46 and a time limit


def check_3_5(ctx: Context, check_part: Callable[..., Any]) -> Verdict:
    """Well, refusing, silent; then the Lab's own database, down and frozen."""
    ask_database: Any = getattr(check_part, "__globals__", {}).get("ask_database")
    ctx.require(callable(ask_database), "part_no_question")
    ctx.require(inspect.iscoroutinefunction(check_part), "part_sync")
    engine = ctx.lab.engine
    question = _question(ctx, ask_database, engine)
    good = _part(ctx, check_part, "cache", lambda: None)
    ctx.require(good.get("status") == "healthy" and "response_time" in good, "part_shape", got=json.dumps(good)[:80])
    if question is not None:
        raise question
    with logged() as records:
        refused = _part(ctx, check_part, "database", _refusing)
    told = json.dumps(refused)
    found = [word for word, secret in SECRETS.items() if secret in told]
    ctx.require(refused.get("status") != "healthy", "part_always_well")
    ctx.require(refused.get("status") == "unhealthy" and refused.get("error"), "part_failed_shape", got=told[:80])
    ctx.require(not found, "part_leaks", count=len(found), shown=_first(told))
    ctx.require(Refused.__name__ not in told, "part_names", shown=Refused.__name__)
    ctx.require(any(HOST in record for record in records), "part_silent")
    _silence(ctx, check_part)
    _live(ctx, check_part, ask_database, engine)
    return done("part_done", limit=PATIENCE)


def _question(ctx: Context, ask_database: Callable[..., Any], engine: Any) -> Verdict | None:
    """What is wrong with the question while the database is well."""
    try:
        ctx.call(ask_database, engine)
    except Verdict:
        raise
    except Exception as error:
        if type(error).__name__ == "ObjectNotExecutableError":
            return almost("part_bare", error=type(error).__name__)
        raise
    nowhere = create_engine("postgresql+psycopg://nobody@127.0.0.1:9/none", connect_args={"connect_timeout": 1})
    try:
        ctx.call(ask_database, nowhere)
    except Verdict:
        raise
    except Exception:
        return None
    return almost("part_blind")


def _refusing() -> None:
    raise Refused(REFUSED)


def _first(told: str) -> str:
    at = max(0, told.find(HOST) - 10)
    return told[at : at + 60]


def _part(ctx: Context, check_part: Callable[..., Any], name: str, ask: Callable[[], Any]) -> dict[str, Any]:
    """What she says of one part, run where requests run."""

    async def run(_: Any) -> Any:
        return await ctx.call(check_part, name, ask)

    with ctx.limited():
        found = ctx.lab.run(run, HELD + PATIENCE)
    ctx.require(isinstance(found, dict), "part_type", what=type(found).__name__)
    return dict(found)


def _silence(ctx: Context, check_part: Callable[..., Any]) -> None:
    """A part that does not answer for two seconds: what does she wait for, and does the loop turn meanwhile?"""
    over, asked = threading.Event(), threading.Event()

    def ask() -> None:
        asked.set()
        over.wait(HELD)

    async def run(_: Any) -> tuple[Any, float, float]:
        async with _turning() as stalls:
            begin = time.monotonic()
            found = await check_part("database", ask)
            took = time.monotonic() - begin
        return found, took, max(stalls)

    try:
        with ctx.limited():
            found, took, stalled = ctx.lab.run(run, 3 * HELD)
    finally:
        over.set()
    ctx.require(asked.is_set(), "part_unasked")
    ctx.require(stalled < STALL, "part_blocks", stalled=stalled)
    ctx.require(took < (PATIENCE + HELD) / 2 and isinstance(found, dict), "part_waits", took=took, limit=PATIENCE)
    ctx.require(found.get("status") == "unhealthy", "part_late_well", got=json.dumps(found)[:80])


class _turning:
    """Watches the running loop: the longest times without a turn, in seconds."""

    async def __aenter__(self) -> list[float]:
        self.stalls = [0.0]
        self._task = asyncio.ensure_future(self._turn())
        await asyncio.sleep(0)
        return self.stalls

    async def _turn(self) -> None:
        last = time.monotonic()
        while True:
            try:
                await asyncio.sleep(0.02)
            finally:
                now = time.monotonic()
                self.stalls.append(now - last)
                last = now

    async def __aexit__(self, *raised: object) -> None:
        await asyncio.sleep(0)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _live(ctx: Context, check_part: Callable[..., Any], ask_database: Callable[..., Any], engine: Any) -> None:
    """The Lab's own database goes down, then freezes; where it cannot be broken, that is left out."""
    for fault in ("database_down", "database_frozen"):
        try:
            broken = ctx.lab.fault(fault)
        except ServiceError:
            continue
        with mounted(ctx.lab, lambda: check_part("database", lambda: ask_database(engine))) as ask:
            with broken:
                if fault == "database_frozen" and _answers(engine):
                    continue  # SQLite reads its SELECT 1 from no file
                reply = ask(ctx)
            _expect(ctx, fault, reply, engine)
            _settled(engine)
            again = ask(ctx)
            ctx.require(
                (again.json or {}).get("status") == "healthy", "part_not_back", fault=ctx.words(f"fault_{fault}")
            )


def _expect(ctx: Context, fault: str, reply: Reply, engine: Any) -> None:
    name = ctx.words(f"fault_{fault}")
    if reply.error:
        raise Verdict("error", "course.endpoint_raised", path="check_part", code=str(reply.error))
    ctx.require(reply.elapsed < LATE, "part_live_waits", fault=name, took=reply.elapsed, limit=PATIENCE)
    ctx.require(reply.json.get("status") == "unhealthy", "part_live_well", fault=name)
    found = leaks(reply.text, make_url(engine.url))
    ctx.require(not found, "part_live_leaks", fault=name, names=named(found))


def _answers(engine: Any, within: float = 0.3) -> bool:
    """Whether the database answers a plain question."""
    done = threading.Event()

    def ask() -> None:
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            done.set()
        except Exception:
            return

    threading.Thread(target=ask, daemon=True, name="lesson question").start()
    return done.wait(within)


def _settled(engine: Any) -> None:
    """Wait until a database that is back takes connections."""
    end = time.monotonic() + 5
    while not _answers(engine) and time.monotonic() < end:
        time.sleep(0.05)


@contextmanager
def mounted(lab: Lab, endpoint: Callable[[], Awaitable[Any]]) -> Iterator[Callable[[Context], Reply]]:
    """An endpoint in the Lab's application meanwhile; what is given makes one request to it."""
    app: Any = lab.app

    async def run() -> Any:
        return await endpoint()

    app.add_api_route(PATH, run, response_model=None)
    route = app.router.routes[-1]

    def ask(ctx: Context) -> Reply:
        try:
            with ctx.limited():
                return lab.get(PATH)
        except RequestError:
            raise almost("part_waits", took=HELD, limit=PATIENCE) from None

    try:
        yield ask
    finally:
        app.router.routes.remove(route)


# --- 3.6 all parts: T45, the status, and live faults


def check_3_6(ctx: Context, detailed_health: Callable[..., Any]) -> Verdict:
    """Shape, a loop that turns, what each combination of parts comes to, and the Lab under each fault."""
    verdicts: Scripted = {}
    machine = _Machine()
    with _alone(ctx, detailed_health, verdicts, machine) as lab:
        reply, stalled = _watched(ctx, lab)
        body = _body(ctx, reply)
        ctx.require(stalled < STALL, "whole_blocks", probes=1, stalled=stalled)
        took = reply.elapsed if reply.elapsed < PATIENCE else min(reply.elapsed, _once(ctx, lab).elapsed)
        ctx.require(took < PATIENCE, "whole_slow", took=took, limit=PATIENCE)
        ctx.require(body["status"] == "healthy" and reply.status == 200, "whole_well", got=body["status"])
        machine.scripted = True
        for key, broken, memory, disk, status, code in CASES:
            verdicts.clear()
            verdicts.update(dict.fromkeys(broken, "unhealthy"))
            machine.memory, machine.disk = memory, disk
            reply = _once(ctx, lab)
            got = _body(ctx, reply)["status"]
            parts = ", ".join(broken) or "-"
            ctx.require(got == status, key, got=got, wanted=status, parts=parts)
            same = {"got": reply.status, "wanted": code, "status": status}
            ctx.require(reply.status == code, "whole_200" if code == 503 else "whole_503", **same)
    with _standing(ctx, detailed_health):
        seen = scenarios(ctx.lab, PATH)
    ctx.keep("health", seen)
    worst = seen.worst
    if worst is not None:
        raise almost(f"live_{worst.wrong}", fault=worst.label, got=worst.says, took=worst.seconds, limit=PATIENCE)
    return done("whole_done", faults=len(seen.rows) - 1)


# key, parts that are down, % of memory, % of disk, status, HTTP status
CASES: tuple[tuple[str, tuple[str, ...], float, float, str, int], ...] = (
    ("whole_fine", (), 40, 40, "healthy", 200),
    ("whole_database", ("database",), 40, 40, "unhealthy", 503),
    ("whole_cache", ("cache",), 40, 40, "degraded", 200),
    ("whole_both", ("database", "cache"), 40, 40, "unhealthy", 503),
    ("whole_disk", (), 40, 97, "degraded", 200),
    ("whole_memory", (), 97, 40, "degraded", 200),
    ("whole_hidden", ("database",), 40, 97, "unhealthy", 503),
)


class _Machine:
    """psutil as her endpoint sees it: the real one, or one that says what the check wants."""

    scripted = False
    memory = disk = 40.0

    def virtual_memory(self) -> Any:
        return SimpleNamespace(percent=self.memory)

    def disk_usage(self, path: str) -> Any:
        return SimpleNamespace(percent=self.disk)

    def cpu_percent(self, interval: float | None = None, *more: Any) -> Any:
        return 12.5 if self.scripted else psutil.cpu_percent(interval, *more)

    def __getattr__(self, name: str) -> Any:
        return getattr(psutil, name)


@contextmanager
def _alone(ctx: Context, endpoint: Callable[..., Any], verdicts: Scripted, machine: _Machine) -> Iterator[Lab]:
    """Her endpoint over parts that say what the check wants, in an application of its own."""

    async def check_part(name: str, ask: Callable[[], Any]) -> dict[str, str]:
        ask()
        if verdicts.get(name) == "unhealthy":
            return {"status": "unhealthy", "error": "unavailable"}
        return {"status": "healthy", "response_time": "0.0012s"}

    pieces = {"check_part": check_part, "ask_database": lambda engine: None, "ask_cache": lambda url: None}
    app = FastAPI()
    app.add_api_route(PATH, rebound(endpoint, psutil=machine, **pieces), response_model=None)
    app.state.engine, app.state.redis_url, app.state.disk_usage = object(), "redis://", machine.disk_usage
    with Lab(app, latency=0, time_limit=5.0) as lab:
        yield lab


def _once(ctx: Context, lab: Lab) -> Reply:
    with ctx.limited():
        reply = lab.get(PATH)
    if reply.error:
        raise Verdict("error", "course.endpoint_raised", path="/health/detailed", code=str(reply.error))
    return reply


def _watched(ctx: Context, lab: Lab) -> tuple[Reply, float]:
    """One probe, and the longest time in which the loop did not turn."""

    async def run(client: Any) -> tuple[Reply, float]:
        async with _turning() as stalls:
            reply = await client.call("GET", PATH)
        return reply, max(stalls)

    with ctx.limited():
        reply, stalled = lab.run(run)
    if reply.error:
        raise Verdict("error", "course.endpoint_raised", path="/health/detailed", code=str(reply.error))
    return reply, stalled


def _body(ctx: Context, reply: Reply) -> dict[str, Any]:
    ctx.require(reply.status != 422, "whole_parameters", got=reply.text[:80])
    body = reply.json
    lacking = KEYS - body.keys() if isinstance(body, dict) else KEYS
    ctx.require(not lacking, "whole_shape", names=", ".join(sorted(lacking)))
    lacking = {"database", "cache", "system"} - body["checks"].keys()
    ctx.require(not lacking, "whole_parts", names=", ".join(sorted(lacking)))
    lacking = SYSTEM - body["checks"]["system"].keys()
    ctx.require(not lacking, "whole_system", names=", ".join(sorted(lacking)))
    return dict(body)


@contextmanager
def _standing(ctx: Context, endpoint: Callable[..., Any]) -> Iterator[None]:
    """Her endpoint with her own parts, in the Lab's application."""
    app: Any = ctx.lab.app
    app.add_api_route(PATH, endpoint, response_model=None)
    route = app.router.routes[-1]
    try:
        yield
    finally:
        app.router.routes.remove(route)
