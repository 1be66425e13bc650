"""The two ways to wait: coroutines on an event loop, and plain functions in threads.

What is above (``Engine``) is written once, as coroutines. In a thread none of them ever suspends (``finished``).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context
from typing import Any, Protocol

from labkit.cache import locks
from labkit.cache.client import CacheClient, Unavailable, finished
from labkit.cache.flights import Seat


class Face(Protocol):
    """Redis, and how to wait for others."""

    async def read(self, key: str) -> bytes | None: ...
    async def run(self, script: str, keys: Sequence[str] = (), args: Sequence[Any] = ()) -> Any: ...
    async def block(self, seconds: float, *words: Any) -> Any: ...
    async def forget(self, keys: Sequence[str] = (), tags: Sequence[str] = ()) -> bool: ...

    def home(self) -> object:
        """Whose callers can wait for one another."""

    def seat(self) -> Seat:
        """A place to wait."""

    async def join(self, seat: Any) -> Any:
        """Wait there."""

    def keep(self, lock: locks.Lock) -> Callable[[], object]:
        """Renew ``lock`` until the function that is returned is called."""

    def spawn(self, work: Coroutine[Any, Any, Any]) -> object:
        """Have ``work`` done, whatever becomes of the caller."""


class Looping:
    """For coroutine functions."""

    def __init__(self, client: CacheClient) -> None:
        self.read, self.run, self.block, self.forget = client.read, client.run, client.block, client.forget
        self.home = asyncio.get_running_loop
        self._client = client

    def seat(self) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().create_future()

    async def join(self, seat: asyncio.Future[Any]) -> Any:
        return await seat

    def keep(self, lock: locks.Lock) -> Callable[[], object]:
        loop, timers = asyncio.get_running_loop(), list[asyncio.TimerHandle]()

        def again() -> None:
            self.spawn(lock.renew())
            timers[:] = [loop.call_later(locks.LEASE / 3, again)]

        timers.append(loop.call_later(locks.LEASE / 3, again, context=Context()))
        return lambda: timers[0].cancel()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        async def quiet() -> None:
            with suppress(Unavailable):
                await work

        try:
            Context().run(self._client.spawn, quiet())  # of no request
        except RuntimeError:  # the loop is gone
            work.close()


class Threading:
    """For plain functions, each call in a thread of its caller's."""

    def __init__(self, client: CacheClient) -> None:
        commands = client.sync.commands
        self.read, self.run, self.block, self.forget = commands.read, commands.run, commands.block, commands.forget

    def home(self) -> None:
        return None

    def seat(self) -> Future[Any]:
        return Future()

    async def join(self, seat: Future[Any]) -> Any:
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
