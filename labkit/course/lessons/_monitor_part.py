"""The check of one part of the health endpoint of lesson 03 (3.5): T44, T46 and a time limit."""

from __future__ import annotations

import inspect
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import create_engine, make_url, text

from labkit.asgi import Reply
from labkit.course.checks import Context, Verdict, almost, done
from labkit.course.lessons._monitor_faults import PATIENCE, leaks, named
from labkit.course.lessons._monitor_watch import STALL, logged, turning
from labkit.errors import RequestError, ServiceError
from labkit.lab import Lab

PATH = "/check/health"
HELD = 2.0
"""Seconds for which a part of the check does not answer; a probe gives it up by then."""

LATE = 1.5
"""Seconds from which a probe is too late; the limit is 1 s, and a machine that stands still is not the learner's."""

HOST, PORT, ROLE = "db-7.internal", "5433", "blog_admin"
SECRETS = {"host": HOST, "port": PORT, "role": ROLE}
REFUSED = (
    f'connection to server at "{HOST}", port {PORT} failed: FATAL: password authentication failed for user "{ROLE}"'
)


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
        async with turning() as stalls:
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
