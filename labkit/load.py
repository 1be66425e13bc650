"""Traffic: many requests at once inside the Lab's loop, and what became of them."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain, repeat, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit import settings, stats
from labkit._loaded import LoadResult
from labkit._side import SideBySide, side_by_side
from labkit._text import say
from labkit._traffic import Clockwork, Ids, Paths, moments, targets, zipf
from labkit._watch import Watch
from labkit.errors import MeasurementError, RequestError

if TYPE_CHECKING:
    from labkit._client import Client

__all__ = ["LoadResult", "SideBySide", "load", "side_by_side", "zipf"]

Turn = tuple[str, float]  # an address, and the moment it was due; 0 for as soon as a worker is free


async def load(
    client: Client,
    path: Paths,
    *,
    requests: int | None = None,
    concurrency: int | None = None,
    ids: Ids | None = None,
    method: str = "GET",
    rate: float | None = None,
    arrivals: str = "fixed",
    seed: int = 0,
    seconds: float | None = None,
    **options: Any,
) -> LoadResult:
    """Make many requests, as busy workers do or, with ``rate``, as users do who arrive on their own.

    Without ``rate`` this is a closed loop: ``concurrency`` workers, each asking anew as soon as it has its
    answer. It slows down with the application: when that stalls, fewer requests are sent, and the percentiles
    look better than users would find them (coordinated omission). With ``rate`` it is an open loop: requests are
    due at their moments whatever became of those before, and each one's time counts from then, as in wrk2
    (Tene, "How NOT to measure latency").

    Args:
        client: the Lab's, inside its loop.
        path: where to; ``{id}`` in it is filled from ``ids``. A mapping mixes paths by their weights.
        requests: how many in all, at most; default 1,000, or as many as arrive in ``seconds``.
        concurrency: workers, by default 10; in an open loop how many may be under way at once, by default 100
            (how many had to wait for that is in ``LoadResult.capped``).
        ids: an iterable (repeated when it ends) or a function of a ``random.Random``, such as ``zipf(500)``.
        method: HTTP method.
        rate: requests a second.
        arrivals: ``"fixed"``, evenly spaced, or ``"poisson"``, independent of each other.
        seed: makes ids, mix and arrivals reproducible.
        seconds: no request but the first is started after that; default 30.
        options: of each request, see ``Lab.request``.

    Raises:
        MeasurementError: if a number is not above 0, ``{id}`` and ``ids`` do not go together, or there are no
            such weights or arrivals.
        RequestError: if there is no such option.
    """
    names = ("requests", "concurrency", "ids", "method", "rate", "arrivals", "seed", "seconds")
    client.check(options, *names)
    limit = 30.0 if seconds is None else seconds
    stats.positive(seconds=limit, **({} if rate is None else {"rate": rate}))
    if requests is None:
        requests = 1000 if rate is None or seconds is None else math.ceil(rate * seconds)
    concurrency = concurrency if concurrency is not None else 10 if rate is None else 100
    stats.positive(requests=requests, concurrency=concurrency)
    requests, concurrency = math.ceil(requests), math.ceil(concurrency)
    chance = random.Random(seed)
    given, addresses = targets(path, ids, requests, chance)
    if rate is None and arrivals != "fixed":
        raise MeasurementError(say("load.no_rate", arrivals=arrivals))
    after = None if rate is None else moments(rate, arrivals, requests, chance)

    run = _Run(client, method, options)
    async with Watch(lambda: len(run.started), requests, _redis_url(client)) as watch:
        run.begin(limit)
        if after is None:
            await run.closed(addresses, concurrency)
        else:
            await run.open(addresses, concurrency, after)
        took = time.perf_counter() - run.start
    order = np.argsort(run.started, kind="stable").tolist()
    caches = [kind and kind.decode("latin-1").upper() for kind in run.caches]
    return LoadResult(
        path if isinstance(path, str) else " + ".join(path),
        method,
        concurrency,
        took,
        tuple(run.started[i] - run.start for i in order),
        tuple(run.elapsed[i] for i in order),
        tuple(run.outcomes[i] for i in order),
        client.trip.ms if run.asked else 0.0,
        tuple(caches[i] for i in order) if any(caches) else (),
        rate or 0.0,
        tuple(run.waited[i] for i in order) if rate else (),
        run.capped,
        () if isinstance(path, str) else tuple(given[: len(order)]),
        tuple((max(0.0, moment - run.start), used) for moment, used in watch.memory),
    )


def _redis_url(client: Client) -> str | None:
    state = getattr(getattr(client, "app", None), "state", None)
    return getattr(state, "redis_url", None) or settings.redis_url()


class _Run:
    """The requests of one load and the record of them: plain lists of numbers, which the garbage collector skips."""

    def __init__(self, client: Client, method: str, options: dict[str, Any]) -> None:
        self.call = client.caller(method, **options)
        self.started, self.elapsed, self.waited = list[float](), list[float](), list[float]()
        self.outcomes, self.caches = list[int | str](), list[bytes | None]()
        self.asked, self.capped = False, 0
        self.start = self.end = 0.0

    def begin(self, seconds: float) -> None:
        """Start the clock; after so many seconds no further request is sent."""
        self.start = time.perf_counter()
        self.end = self.start + seconds

    async def closed(self, addresses: list[str], concurrency: int) -> None:
        """Keep so many workers busy."""
        turns = zip(addresses, repeat(0.0))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(addresses))):
                group.create_task(self._work(turns))

    async def open(self, addresses: list[str], concurrency: int, after: Iterator[float]) -> None:
        """Send each request at its moment; who finds all places taken waits in line."""
        waiting, line, over, busy = iter(addresses), deque[Turn](), asyncio.Event(), 0

        def arrive(due: float) -> None:
            nonlocal busy
            turn = next(waiting), due
            if over.is_set():
                return
            if busy < concurrency:
                busy += 1
                group.create_task(serve(turn))
            else:
                self.capped += 1
                line.append(turn)

        async def serve(turn: Turn) -> None:
            nonlocal busy
            while time.perf_counter() < turn[1]:
                await asyncio.sleep(0)
            await self._work(chain([turn], _taken(line)))
            busy -= 1

        first = next(after) + self.start
        rest = takewhile(lambda due: due <= self.end, (self.start + moment for moment in after))
        clockwork = Clockwork(chain([first], rest), arrive, over.set)
        async with asyncio.TaskGroup() as group:
            clockwork.start()
            try:
                await over.wait()
            finally:
                clockwork.stop()
                over.set()

    async def _work(self, turns: Iterator[Turn]) -> None:
        # This loop competes with what it measures.
        clock, call, task = time.perf_counter, self.call, asyncio.current_task()
        begin, take, end, say_cache = self.started.append, self.elapsed.append, self.outcomes.append, self.caches.append
        for address, due in turns:
            began = clock()
            outcome: int | str
            cache = None
            if began > self.end and self.started:
                if not due:
                    return
                elapsed, outcome = 0.0, "unsent"
            else:
                try:
                    reply = await call(address, task)
                except RequestError as error:
                    elapsed, outcome = clock() - began, type(error).__name__
                else:
                    elapsed, outcome = reply.elapsed, reply.status
                    if reply.error and reply.status < 500:  # it raised after it had begun to answer
                        outcome = f"{outcome} + error"
                    if reply.queries:
                        self.asked = True
                    for name, value in reply.raw_headers:
                        if name == b"x-cache":
                            cache = value
            if due:
                elapsed += began - due
                self.waited.append(began - due)
            begin(due or began)
            take(elapsed)
            end(outcome)
            say_cache(cache)


def _taken(line: deque[Turn]) -> Iterator[Turn]:
    """Who stands in line, as long as somebody does."""
    while line:
        yield line.popleft()
