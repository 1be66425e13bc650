"""The two ways to wait: coroutines on an event loop, and plain functions in threads.

What is above (``Engine``) is written once, as coroutines. In a thread none of them ever suspends (``finished``).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from typing import Any

from labkit.cache import locks
from labkit.cache.client import CacheClient, Unavailable, finished
from labkit.cache.near import NearCache


class Looping:
    """For coroutine functions.

    Attributes:
        redis: the connection.
    """

    def __init__(self, client: CacheClient | NearCache) -> None:
        self.redis = client

    def home(self) -> object:
        """Whose callers can wait for one another."""
        return asyncio.get_running_loop()

    def seat(self) -> Any:
        """A place to wait."""
        return asyncio.get_running_loop().create_future()

    async def join(self, seat: Any) -> Any:
        """Wait there."""
        return await seat

    def keep(self, lock: locks.Lock) -> Callable[[], object]:
        """Renew ``lock`` until the function that is returned is called."""
        loop, timers = asyncio.get_running_loop(), list[asyncio.TimerHandle]()

        def again() -> None:
            self.spawn(lock.renew())
            timers[:] = [loop.call_later(locks.LEASE / 3, again)]

        timers.append(loop.call_later(locks.LEASE / 3, again, context=Context()))
        return lambda: timers[0].cancel()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Have ``work`` done, whatever becomes of the caller."""

        async def quiet() -> None:
            with suppress(Unavailable):
                await work

        try:
            Context().run(self.redis.spawn, quiet())  # of no request
        except RuntimeError:  # the loop is gone
            work.close()


class Threading:
    """For plain functions, each call in its caller's thread. The same methods."""

    def __init__(self, client: CacheClient | NearCache) -> None:
        self.redis = client.sync.commands

    def home(self) -> object:
        return None

    def seat(self) -> Any:
        return Future[Any]()

    async def join(self, seat: Any) -> Any:
        return seat.result()

    def keep(self, lock: locks.Lock) -> Callable[[], object]:
        over = threading.Event()

        def renew() -> None:
            with suppress(Unavailable):
                while not over.wait(locks.LEASE / 3) and finished(lock.renew()):
                    pass

        threading.Thread(target=renew, daemon=True, name="labkit cache lock").start()
        return over.set

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        with suppress(Unavailable):
            finished(work)
