"""A process that has some of the caches and calls them when it is told to."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from typing import Any

from benchmarks._caches import CACHES, CROWD, value

ALL = {cache.name: cache for cache in (*CACHES, *CROWD)}

# Each child is a copy of one process that has imported everything, and nothing else of ours.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["benchmarks._cache_child", "aiocache", "cachu", "cashews", "fastapi_cache", "redis_fastapi"]
)


class Child:
    """The parent's end. Every question gets a number, so that an answer that is late is not taken for the next one's.

    Args:
        names: of the caches.
        url: of their Redis.
        limit: seconds after which a call is given up.
    """

    def __init__(self, names: list[str], url: str, limit: float) -> None:
        self.limit, self._count = limit, 0
        self._pipe, other = _context.Pipe()
        self._process = _context.Process(target=_begin, args=(other, names, url, limit), daemon=True)
        self._process.start()
        other.close()

    def call(self, name: str) -> tuple[float, str, bool]:
        """Call the function: seconds it took, the name of what it raised if it did, and whether that was a hit.

        A call that blocks the whole process cannot be given up there: nobody waits for its answer either.
        """
        self.tell("call", name)
        return self.answer(self.limit + 1) or (self.limit, "TimeoutError", False)

    def tell(self, *question: Any) -> None:
        """Ask something: ``call, name`` or ``crowd, name, user_id, callers, seconds the function takes, when``."""
        self._count += 1
        self._pipe.send((self._count, *question))

    def answer(self, limit: float = 60.0) -> Any:
        """The answer to the last question; None if there is none in time."""
        until = time.monotonic() + limit
        while self._pipe.poll(max(0.0, until - time.monotonic())):
            number, answer = self._pipe.recv()
            if number == self._count:
                return answer
        return None

    def end(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _begin(pipe: Connection, names: list[str], url: str, limit: float) -> None:
    try:
        asyncio.run(_serve(pipe, names, url, limit))
    finally:
        os._exit(0)


async def _serve(pipe: Connection, names: list[str], url: str, limit: float) -> None:
    runs: list[int] = []
    work = 0.0

    async def make(user_id: int) -> dict[str, Any]:
        runs.append(user_id)
        await asyncio.sleep(work)
        return value(1000)

    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        functions = {name: await ALL[name].function(url, make, stack) for name in names}
        while True:
            try:
                number, kind, name, *rest = await loop.run_in_executor(None, pipe.recv)
            except EOFError:  # the parent is gone
                os._exit(0)
            function, work = functions[name], 0.0
            if kind == "call":
                runs.clear()
                told = await _called(function, limit)
                pipe.send((number, (*told, not runs)))
            else:
                user_id, callers, work, moment = rest
                runs.clear()
                await asyncio.sleep(moment - time.time())  # all children at once
                await asyncio.gather(*(function(user_id) for _ in range(callers)), return_exceptions=True)
                pipe.send((number, len(runs)))


async def _called(function: Any, limit: float) -> tuple[float, str]:
    start, failed = time.perf_counter(), ""
    try:
        async with asyncio.timeout(limit):
            status = getattr(await function(1), "status", 200)
        failed = "" if status == 200 else str(status)
    except Exception as error:
        failed = type(error).__name__
    return time.perf_counter() - start, failed
