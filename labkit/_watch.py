"""Looks at a load while it runs, five times a second, from a thread of its own: how far it is, what Redis holds."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from labkit._progress import Bar
from labkit._text import say

PAUSE = 0.2  # seconds between two looks
LIMIT = 0.2  # seconds that Redis has to answer: one that hangs holds up nobody


class Watch:
    """Entered before a load and left after it; without Redis and where no bar is seen there is no thread.

    Args:
        done: how many requests are over.
        total: how many there will be.
        redis_url: where Redis is; None if there is none.

    Attributes:
        memory: moments (``time.perf_counter``) and the bytes that Redis said it used then.
    """

    def __init__(self, done: Callable[[], int], total: int, redis_url: str | None) -> None:
        self.memory: list[tuple[float, int]] = []
        self._done, self._total = done, total
        self._bar = Bar(lambda done, total: say("load.progress", part=done / total, done=done, total=total))
        self._redis = _connect(redis_url) if redis_url else None
        self._over = threading.Event()
        # In the caller's context, by which a notebook knows the cell that the bar belongs to.
        self._thread = threading.Thread(target=copy_context().run, args=(self._look,), name="labkit watch", daemon=True)

    def _look(self) -> None:
        while not self._over.wait(PAUSE):
            self._weigh()
            self._bar(min(self._done(), self._total), self._total)
        self._weigh()
        self._bar.clear()
        if self._redis is not None:
            self._redis.close()

    def _weigh(self) -> None:
        if self._redis is not None:
            with suppress(Exception):  # it may be down, frozen, or a false one that knows no such thing
                self.memory.append((perf_counter(), int(self._redis.info("memory")["used_memory"])))

    async def __aenter__(self) -> Self:
        if self._redis is not None:
            await asyncio.to_thread(self._weigh)
        if self._redis is not None or self._bar.shown:
            self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive() and error is None:
            await asyncio.to_thread(self._thread.join)


def _connect(url: str) -> Any:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    with suppress(ValueError):  # an address that is none of Redis' own, as that of a cluster
        return Redis.from_url(
            url, socket_timeout=LIMIT, socket_connect_timeout=LIMIT, retry=Retry(NoBackoff(), 0), max_connections=1
        )
    return None
