"""Traps of Exercise 2 in which somebody waits, or should have: a frozen Redis, a slow one, a product of tables."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy.orm import Session

from labkit.course.checks import Context
from labkit.course.lessons._traps_2_store import small_blog, without_keys
from labkit.course.trapcard import Found, judged

CALLS = 5
PATIENCE = 0.5  # seconds
USERS, POSTS, COMMENTS = 10, 100, 400
COURSE = 50 * 1_000 * 10_000  # rows of the product at the size that the course text speaks of
READS = 20
REQUESTS = 10
SLOW_MS = 100.0
ATTEMPTS = 10

Function = Callable[..., Any]


def t37(ctx: Context, trap: Any, cure: Any) -> Found:
    """A Redis that hangs: calls that still wait after half a second."""
    return judged(_waiting(ctx, trap), _waiting(ctx, cure), bad=lambda n: n > 0, calls=CALLS, seconds=PATIENCE)


def _waiting(ctx: Context, look_up: Function) -> int:
    def ask() -> None:
        with suppress(Exception):  # an error is an end of the waiting, too
            look_up("t37")

    ask()  # the connection is open before Redis freezes
    threads = [threading.Thread(target=ask, daemon=True) for _ in range(CALLS)]
    with ctx.limited():
        with ctx.lab.fault("redis_frozen"):
            end = time.monotonic() + PATIENCE
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
            waiting = sum(thread.is_alive() for thread in threads)
        for thread in threads:  # Redis goes on, and answers
            thread.join()
    return waiting


def t38(ctx: Context, trap: Any, cure: Any) -> Found:
    """Three tables without a condition: how many users the query counts."""

    def first_total(totals: Function) -> tuple[int, float]:
        seconds = []
        for _ in range(3):
            with Session(engine) as db:
                begun = time.perf_counter()
                users = ctx.call(totals, db)[0]
                seconds.append(time.perf_counter() - begun)
        return users, min(seconds)

    with small_blog(USERS, POSTS, COMMENTS) as engine:
        (product, seconds), (right, _) = first_total(trap), first_total(cure)
    course = seconds * COURSE / max(product, 1)
    return judged(product, right, bad=lambda n: n != USERS, users=USERS, rows=COURSE, seconds=course)


def t40(ctx: Context, trap: Any, cure: Any) -> Found:
    """Invalidation during a fill: reads that get the old price afterwards."""

    async def old(prices: dict[str, int], read: Function, forget: Function) -> int:
        async def change(price: int) -> None:
            prices["t40"] = price
            await forget("t40")

        await change(10)
        filling = asyncio.ensure_future(read("t40"))
        await asyncio.sleep(0.02)
        await change(20)
        await filling
        return sum([await read("t40") == 10 for _ in range(READS)])

    counts = []
    for things in (trap, cure):
        with without_keys(ctx, "t40"), ctx.limited():
            counts.append(ctx.lab.run(lambda client, things=things: old(*things)))
    return judged(*counts, bad=lambda n: n > 0, reads=READS)


def t41(ctx: Context, trap: Any, cure: Any) -> Found:
    """A client that blocks in ``async def``: other requests that are answered while Redis takes its time."""

    async def answered(client: Any, ask: Function) -> int:
        await _found(ask)
        requests = [asyncio.ensure_future(client.call("GET", "/health/")) for _ in range(REQUESTS)]
        await ask("t41")
        done: int = sum(request.done() for request in requests)
        await asyncio.gather(*requests)
        return done

    with without_keys(ctx, "t41"), ctx.limited():
        ctx.lab.redis.command("SET", "t41", "J1")  # as labkit writes a 1
        with ctx.lab.fault("redis_slow", ms=SLOW_MS):
            counts = [ctx.lab.run(lambda client, ask=ask: answered(client, ask)) for ask in (trap, cure)]
        for ask in (trap, cure):
            ctx.lab.run(lambda client, ask=ask: _found(ask))
    return judged(*counts, bad=lambda n: n == 0, requests=REQUESTS, ms=SLOW_MS)


async def _found(ask: Function) -> None:
    """Ask until there is an answer: the fault closes connections as it begins and ends, which opens a breaker."""
    for _ in range(ATTEMPTS):
        if await ask("t41") is not None:
            break
        await asyncio.sleep(SLOW_MS / 1000)
