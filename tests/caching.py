"""What the cache's tests share: a real server, a client for each test, counts of what was run."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from labkit import asgi
from labkit.cache import CacheClient, Event
from labkit.services import redis
from labkit.services.redis import RedisServer


class Kitchen:
    """One client on one server, an observer's book, and a clock that need not be slept through."""

    def __init__(self, server: RedisServer, **options: Any) -> None:
        self.server = server
        self.events: list[Event] = []
        self.runs: Counter[Any] = Counter()
        self.client = CacheClient(server.url, **{"timeout": 5.0, **options})  # the machine may be busy

    def __call__(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run ``work`` in a loop of its own, and close the client there."""

        async def main() -> Any:
            async with self.client:
                return await work()

        return asyncio.run(main())

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    async def get(self, app: Any, path: str, **options: Any) -> Any:
        return await asgi.call(app, "GET", path, **options)


def command(server: RedisServer, *words: Any) -> Any:
    """The decoded answer to one command, by a connection that no cache knows."""
    with redis_py(server) as connection:
        return connection.execute_command(*words)


@contextmanager
def redis_py(server: RedisServer) -> Iterator[Any]:
    from redis import Redis

    connection = Redis.from_url(server.url, decode_responses=True, protocol=2, driver_info=None)
    try:
        yield connection
    finally:
        connection.close()


def calls(server: RedisServer) -> Counter[str]:
    """How often each command has run, scripts' inner ones included."""
    with redis_py(server) as connection:
        stats = connection.info("commandstats")
    stats.pop("cmdstat_info", None)  # this very question
    return Counter({name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()})


start = redis.start


@pytest.fixture(name="server", scope="module")
def the_server() -> Iterator[RedisServer]:
    with start() as server:
        yield server


@pytest.fixture(name="kitchen")
def the_kitchen(server: RedisServer) -> Kitchen:
    command(server, "FLUSHALL")
    return Kitchen(server)


class Clock:
    """Seconds since 1970, set by the test."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
