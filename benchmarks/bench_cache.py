"""What a hit costs: of a cached function, through FastAPI, and in the process's own memory; ours and the peers'."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from statistics import median
from typing import Any

import orjson
from redis.asyncio import Redis

from benchmarks._caches import CACHES, floor_app, value
from benchmarks._measure import Case, Row, Table, publish, rounds
from labkit import asgi
from labkit.cache import CacheClient, cached
from labkit.cache.near import NearCache
from labkit.services import redis
from labkit.stats import median_interval

SIZES = {"1 KB": 1_000, "20 KB": 20_000}
GOALS = {"1 KB": 0.90, "20 KB": 0.75}
MEMORIES = ("aiocache", "cashews", "cachu")  # have a cache in memory for functions
NEAR = 5e-6  # seconds that a hit in memory may take
Operation = Callable[[], Awaitable[object]]


class Timed:
    """A batch of awaited operations, timed by both clocks at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, operation: Operation) -> None:
        self.cpu: list[float] = []  # seconds an operation, batch by batch
        self._loop, self._operation = loop, operation

    async def _batch(self, times: int) -> float:
        operation, start, cpu = self._operation, time.perf_counter(), time.thread_time()
        for _ in range(times):
            await operation()
        self.cpu.append((time.thread_time() - cpu) / times)
        return time.perf_counter() - start

    def __call__(self, times: int) -> float:
        return self._loop.run_until_complete(self._batch(times))


def both(title: str, floor: str, cases: Sequence[Case], missing: Sequence[str], *, seconds: float) -> list[Table]:
    """Measure the cases against the first: a table of CPU time and one of time on the wall."""
    wall = rounds(cases, seconds=seconds)
    cpu = list(zip(*(case.run.cpu[-len(wall) :] for case in cases), strict=True))  # type: ignore[attr-defined]
    return [
        _table(f"{title}, {clock}", floor, cases, missing, found)
        for clock, found in (("CPU time", cpu), ("time on the wall", wall))
    ]


def _table(
    title: str, floor: str, cases: Sequence[Case], missing: Sequence[str], found: Sequence[Sequence[float]]
) -> Table:
    rows = []
    for i, case in enumerate(cases):
        ratio, low, high = median_interval([row[i] / row[0] for row in found])
        goal, reached = ("", None) if case.goal is None else (f"<= {case.goal:g}", ratio <= case.goal)
        rows.append(Row(case.name, median(row[i] for row in found), ratio, low, high, goal, reached))
    return Table(title, f"{floor}. Not installed: {', '.join(missing)}" if missing else floor, rows, len(found))


class Bench:
    """One loop and one real server for all."""

    def __init__(self, loop: asyncio.AbstractEventLoop, url: str, stack: AsyncExitStack) -> None:
        self.loop, self.url, self.stack = loop, url, stack

    def run(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(work)

    def case(self, name: str, operation: Operation, goal: float | None = None) -> Case:
        return Case(name, Timed(self.loop, operation), goal)

    def functions(self, size: str) -> list[Table]:
        """Hits of a cached coroutine function."""
        content, client = value(SIZES[size]), Redis.from_url(self.url)
        self.stack.push_async_callback(client.aclose)
        self.run(client.set("floor", json.dumps(content)))

        async def floor() -> Any:
            return json.loads(await client.get("floor"))  # type: ignore[arg-type]

        async def lower() -> Any:
            return orjson.loads(await client.get("floor"))  # type: ignore[arg-type]

        cases = [self.case("get + json.loads", floor), self.case("get + orjson.loads", lower)]
        for cache in CACHES:
            if cache.missing or cache.decorator is None:
                continue
            function = self.run(cache.function(self.url, _once(content), self.stack))
            self._check(function, content)
            cases.append(self.case(cache.title, partial(function, 1), None if cache.distribution else GOALS[size]))
        title = f"A hit of a cached coroutine function, {size}"
        return both(
            title,
            "await redis.asyncio.Redis.get, then json.loads",
            cases,
            [cache.name for cache in CACHES if cache.missing and cache.decorator],
            seconds=8,
        )

    def endpoints(self, size: str) -> list[Table]:
        """Hits through FastAPI, a session of SQLAlchemy among the dependencies."""
        content = value(SIZES[size])
        apps: list[tuple[str, Any, float | None]]
        apps = [("get, and a Response of the bytes", floor_app(self.url, orjson.dumps(content), self.stack), None)]
        for cache in CACHES:
            if not cache.missing:
                app = self.run(cache.app(self.url, _once(content), self.stack))
                apps.append((cache.title, app, None if cache.distribution else 1.15))
        cases = []
        for name, app, goal in apps:
            for _ in range(2):
                reply = self.run(asgi.call(app, "GET", "/users/1"))
                if reply.status != 200 or reply.json != content:
                    raise RuntimeError(f"{name}: {reply.status}")
            cases.append(self.case(name, partial(asgi.prepare(app, "GET"), "/users/1"), goal))
        return both(
            f"A hit through FastAPI, {size}",
            "an endpoint with the same dependencies that gets the bytes by redis-py and sends them",
            cases,
            [cache.name for cache in CACHES if cache.missing],
            seconds=8,
        )

    def memory(self) -> Table:
        """Hits in the process's own memory."""
        small, large, ours = value(100), value(1000), "labkit.cache, a cached function on a NearCache"
        plain = {"user:1": small}

        async def floor() -> Any:
            return plain["user:1"]

        client = CacheClient(self.url, timeout=1)
        near = NearCache(client)
        self.stack.push_async_callback(client.close)
        self.stack.push_async_callback(near.close)
        cases = [self.case("a dict, by a coroutine", floor)]
        for name, content in (("100 B", small), ("1 KB", large)):
            function = cached(300, f"near-{len(content['posts'])}", client=near)(_user(_once(content)))
            self._check(function, content)
            self.run(_heard(near, function))
            if name == "1 KB":
                cases.append(self.case("NearCache.read, 1 KB", partial(near.read, function.key(1))))
                cases.append(self.case("orjson.loads, 1 KB", partial(_decoded, orjson.dumps(content))))
            cases.append(self.case(f"{ours}, {name}", partial(function, 1)))
        missing = [cache.name for cache in CACHES if cache.missing and cache.name in MEMORIES]
        for name, decorate in _memories().items():
            function = decorate(_user(_once(small)))
            self._check(function, small)
            cases.append(self.case(name, partial(function, 1)))
        table = both("A hit in memory", "a look-up in a dict, from a coroutine", cases, missing, seconds=8)[0]
        for row in table.rows:
            if "NearCache" in row.name and row.name != f"{ours}, 1 KB":  # which is mostly orjson's time
                row.goal, row.reached = f"<= {NEAR * 1e6:g} us", row.seconds <= NEAR
        return table

    def _check(self, function: Any, content: Any) -> None:
        for _ in range(3):
            if self.run(function(1)) != content:
                raise RuntimeError(function)


def _once(content: dict[str, Any]) -> Callable[[int], Awaitable[dict[str, Any]]]:
    """What computes a value, a single time: the rest must be hits."""
    left = [content]

    async def make(user_id: int) -> dict[str, Any]:
        return left.pop()

    return make


def _user(make: Callable[[int], Awaitable[dict[str, Any]]]) -> Any:
    async def user(user_id: int) -> dict[str, Any]:
        return await make(user_id)

    return user


async def _decoded(data: bytes) -> Any:
    return orjson.loads(data)


async def _heard(near: NearCache, function: Any) -> None:
    while not near.at_hand(function.key(1)):
        await function(1)
        await asyncio.sleep(0.01)


def _memories() -> dict[str, Any]:
    """The peers' caches in memory, by title."""
    found = {}
    for cache in CACHES:
        if cache.missing:
            continue
        if cache.name == "aiocache":
            import aiocache

            found[f"{cache.title}, SimpleMemoryCache"] = aiocache.cached(ttl=300)
        elif cache.name == "cashews":
            import cashews

            memory = cashews.Cache()
            memory.setup("mem://")
            found[f"{cache.title}, mem://"] = memory(ttl=300, key="user:{user_id}")
        elif cache.name == "cachu":
            import cachu

            found[f"{cache.title}, memory"] = cachu.cache(ttl=300, backend="memory")
    return found


def main() -> None:
    """All in one process: only so are the turns interleaved."""
    server, loop, stack = redis.start(), asyncio.new_event_loop(), AsyncExitStack()
    asyncio.set_event_loop(loop)
    bench = Bench(loop, server.url, stack)
    try:
        tables = []
        for measure in (bench.functions, bench.endpoints):
            for size in SIZES:
                tables += measure(size)
                bench.run(_flush(server.url))
        tables.append(bench.memory())
    finally:
        loop.run_until_complete(stack.aclose())
        loop.close()
        server.stop()
    introduction = (
        "A hit with a real Valkey on this machine. CPU time is that of the thread in which all of it runs. "
        "From memory aiocache and cashews hand out the object itself: what one caller changes in it, the next one gets."
    )
    publish("cache", introduction, tables)


async def _flush(url: str) -> None:
    async with Redis.from_url(url) as client:
        await client.flushall()


if __name__ == "__main__":
    main()
