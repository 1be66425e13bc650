"""The check of the whole health endpoint of lesson 03 (3.6): T45, its statuses, and the Lab under each fault."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psutil
from fastapi import FastAPI
from sqlalchemy import NullPool, create_engine
from sqlalchemy.orm import sessionmaker

from labkit.asgi import Reply
from labkit.course.checks import Context, Verdict, almost, done
from labkit.course.lessons._monitor_faults import PATIENCE, scenarios
from labkit.course.lessons._monitor_watch import STALL, turning
from labkit.lab import Lab

PATH = "/check/health"
KEYS = {"status", "timestamp", "checks"}
SYSTEM = {"memory_usage", "disk_usage", "cpu_usage"}
_ASKED = ("virtual_memory", "disk_usage", "cpu_percent")  # of psutil

Scripted = dict[str, str]


def check_3_6(ctx: Context, detailed_health: Callable[..., Any]) -> Verdict:
    """Shape, a loop that turns, what each combination of parts comes to, and the Lab under each fault."""
    verdicts: Scripted = {}
    machine = _Machine()
    asked: set[str] = set()
    with _alone(ctx, detailed_health, verdicts, machine, asked) as lab:
        reply, stalled = _watched(ctx, lab)
        body = _body(ctx, reply)
        lacking = {"database", "cache"} - asked
        ctx.require(not lacking, "whole_own", names=", ".join(sorted(lacking)))
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
def _alone(
    ctx: Context, endpoint: Callable[..., Any], verdicts: Scripted, machine: _Machine, asked: set[str]
) -> Iterator[Lab]:
    """Her endpoint over parts that say what the check wants, in an application of its own; notes who is asked."""

    async def check_part(name: str, ask: Callable[[], Any]) -> dict[str, str]:
        asked.add(name)
        ask()
        if verdicts.get(name) == "unhealthy":
            return {"status": "unhealthy", "error": "unavailable"}
        return {"status": "healthy", "response_time": "0.0012s"}

    pieces = {"check_part": check_part, "ask_database": lambda engine: None, "ask_cache": lambda url: None}
    app = FastAPI()
    app.add_api_route(PATH, endpoint, response_model=None)
    app.state.engine, app.state.redis_url, app.state.disk_usage = object(), "redis://", machine.disk_usage
    app.state.session_factory = sessionmaker(create_engine("sqlite://", poolclass=NullPool))  # for Depends(get_db)
    with _exchanged(endpoint, pieces, machine), Lab(app, latency=0, time_limit=5.0) as lab:
        yield lab


@contextmanager
def _exchanged(endpoint: Callable[..., Any], pieces: dict[str, Any], machine: _Machine) -> Iterator[None]:
    """Other parts and another psutil under the notebook's names, for helpers that her endpoint calls as well."""
    names: dict[str, Any] = getattr(inspect.unwrap(endpoint), "__globals__", {})
    theirs = [(psutil, machine), *((getattr(psutil, name), getattr(machine, name)) for name in _ASKED)]
    others = {name: other for name, value in list(names.items()) for known, other in theirs if value is known} | pieces
    before = {name: names[name] for name in others if name in names}
    names.update(others)
    try:
        yield
    finally:
        for name in others.keys() - before.keys():
            del names[name]
        names.update(before)


def _once(ctx: Context, lab: Lab) -> Reply:
    with ctx.limited():
        reply = lab.get(PATH)
    if reply.error:
        raise Verdict("error", "course.endpoint_raised", path="/health/detailed", code=str(reply.error))
    return reply


def _watched(ctx: Context, lab: Lab) -> tuple[Reply, float]:
    """One probe, and the longest time in which the loop did not turn."""

    async def run(client: Any) -> tuple[Reply, float]:
        async with turning() as stalls:
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
