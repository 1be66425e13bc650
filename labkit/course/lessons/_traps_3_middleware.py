"""Traps of Exercise 3 that lie in the middleware: how long, which status, and what measuring itself costs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from labkit import asgi, stats
from labkit.course.checks import Context
from labkit.course.lessons._leaving import leave
from labkit.course.trapcard import Found, judged
from labkit.monitoring import Metrics

CHUNKS, PAUSE = 5, 0.02  # of the stream, seconds between them
STREAMS = 3
GONE = 10  # clients that hang up: half of them in the middle of a stream, half before a slow answer
LEAVES = 0.03  # seconds after which they do
BATCH = 3  # requests that are timed together: few, so that the machine seldom takes a break among them
HALF = 50.0  # percent of the time that must be recorded

Watch = Callable[[FastAPI, Metrics], Any]


def _app() -> FastAPI:
    app = FastAPI()

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            await asyncio.sleep(PAUSE)
            yield b"chunk"

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(chunks())

    @app.get("/slow")
    async def slow() -> str:
        await asyncio.sleep(CHUNKS * PAUSE)
        return "done"

    @app.get("/tasks")
    async def tasks() -> int:
        return len(asyncio.all_tasks())

    return app


def _watched(ctx: Context, watch: Watch) -> tuple[FastAPI, Metrics]:
    app, metrics = _app(), Metrics()
    ctx.call(watch, app, metrics)
    return app, metrics


def _samples(metrics: Metrics, name: str) -> dict[str, float]:
    """The values of a metric by status, or under "" if it has none."""
    found = dict[str, float]()
    for sample in (sample for family in metrics.registry.collect() for sample in family.samples):
        if sample.name == name:
            status = sample.labels.get("status", "")
            found[status] = found.get(status, 0.0) + sample.value
    return found


def t50(ctx: Context, trap: Any, cure: Any) -> Found:
    """Streams: the share of their time that the middleware records, in percent."""

    def share(watch: Watch) -> tuple[float, float]:
        app, metrics = _watched(ctx, watch)

        async def streams() -> float:
            return sum([(await asgi.call(app, "GET", "/stream")).elapsed for _ in range(STREAMS)])

        real = ctx.run(streams)
        recorded = _samples(metrics, "app_request_duration_seconds_sum").get("", 0.0)
        return 100 * recorded / real, recorded / STREAMS

    (lost, recorded), (kept, real) = share(trap), share(cure)
    return judged(lost, kept, bad=lambda n: n < HALF, recorded_ms=1000 * recorded, real_ms=1000 * real)


def t51(ctx: Context, trap: Any, cure: Any) -> Found:
    """Clients that hang up: how many of them are counted as 200."""

    def statuses(watch: Watch) -> Mapping[str, float]:
        app, metrics = _watched(ctx, watch)

        async def clients() -> None:
            paths = ["/stream", "/slow"] * (GONE // 2)
            await asyncio.gather(*(leave(app, path, seconds=LEAVES) for path in paths))

        ctx.run(clients)
        return _samples(metrics, "app_requests_total")

    counted, cured = statuses(trap), statuses(cure)
    numbers = counted.get("200", 0.0), cured.get("200", 0.0)
    return judged(*numbers, bad=lambda n: n > 0, clients=GONE, gone=cured.get("499", 0.0))


def t53(ctx: Context, trap: Any, cure: Any) -> Found:
    """What a layer costs: a request through it takes so many times as long as without, in interleaved pairs.

    Whether the trap shows is told by a count: the tasks of asyncio that one request needs more.
    """

    async def cost(app: FastAPI) -> tuple[float, int]:
        ask = [asgi.prepare(each, "GET") for each in (app, bare)]
        layered, plain = [(await each("/tasks", None)).json for each in ask]

        async def through(which: int) -> float:
            begun = time.perf_counter()
            for _ in range(BATCH):
                await ask[which]("/tasks", None)
            return time.perf_counter() - begun

        ratio = await stats.compare_async(lambda: through(0), lambda: through(1), limit=0.8, warm_up=10)
        return ratio.ratio, layered - plain

    bare, log = _app(), logging.getLogger("labkit.http")
    level = log.level
    log.setLevel(logging.WARNING)  # what a Lab writes down about each request is not the layer's price
    try:
        (times, tasks), (light, none) = (ctx.run(cost, _watched(ctx, watch)[0]) for watch in (trap, cure))
    finally:
        log.setLevel(level)
    return Found(times, light, tasks > 0, none == 0, {"tasks": tasks, "cure_tasks": none})
