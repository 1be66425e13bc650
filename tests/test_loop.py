"""A loop in a thread of its own: it answers, it stops what hangs, it ends."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import anyio.to_thread
import pytest

from labkit._home import Flight
from labkit._loop import LoopThread
from labkit.errors import AppError, RequestError, RequestTimeout
from tests.looping import LIMIT, Context, answer, the_context, the_loop, until  # noqa: F401 (the fixtures)


def test_a_value_and_an_exception_come_back(loop: LoopThread, context: Context) -> None:
    async def fail() -> None:
        raise LookupError("mine")

    assert loop.run(answer) == 42
    with pytest.raises(LookupError, match="mine"):
        loop.run(fail)
    assert loop.run(answer) == 42 and context.steps == ["in"]


def test_the_callers_context_goes_along_and_comes_not_back(loop: LoopThread) -> None:
    name: ContextVar[str] = ContextVar("name", default="nobody")
    name.set("ana")

    async def work() -> str:
        before = name.get()
        name.set("changed")
        return before

    assert loop.run(work) == "ana" and name.get() == "ana"


def test_many_threads_may_call_at_once(loop: LoopThread) -> None:
    results: list[int] = []

    async def work() -> int:
        await asyncio.sleep(0.01)
        return threading.get_ident()

    threads = [threading.Thread(target=lambda: results.append(loop.run(work))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20 and len(set(results)) == 1


def test_worker_threads_are_kept(loop: LoopThread) -> None:
    """Under run_forever anyio would start one for each call."""

    async def work() -> int:
        return await anyio.to_thread.run_sync(threading.get_ident)

    assert len({loop.run(work) for _ in range(10)}) == 1


def test_a_call_from_inside_gives_a_sentence(loop: LoopThread) -> None:
    async def work() -> None:
        loop.run(answer)

    with pytest.raises(RequestError, match="dentro de la aplicación"):
        loop.run(work)


def test_sys_exit_in_a_task_does_not_end_the_loop(loop: LoopThread) -> None:
    async def leave() -> None:
        sys.exit(3)

    async def work() -> None:
        task = asyncio.create_task(leave())
        with suppress(SystemExit):
            await task

    loop.run(work)
    assert loop.run(answer) == 42


# Start and end


def test_a_start_that_fails_is_raised_at_each_try() -> None:
    tries: list[int] = []

    @asynccontextmanager
    async def fails(flights: set[Flight]) -> AsyncIterator[None]:
        tries.append(1)
        raise AppError("broken")
        yield

    loop = LoopThread(fails)
    for _ in range(2):
        with pytest.raises(AppError, match="broken"):
            loop.run(answer)
    loop.close()
    assert len(tries) == 2


@pytest.mark.parametrize("how", ["wait", "spin", "sleep"])
def test_a_start_that_hangs_is_told_and_given_up(how: str) -> None:
    @asynccontextmanager
    async def hangs(flights: set[Flight]) -> AsyncIterator[None]:
        if how == "wait":
            await asyncio.sleep(60)
        while how == "spin":
            pass
        time.sleep(1)
        yield

    loop = LoopThread(hangs, limit=LIMIT)
    with pytest.raises(AppError, match=r"no arrancó en 100 ms.*test_loop.py:\d+"):
        loop.start()
    loop.close()
    until(lambda: not loop.tainted)


@pytest.mark.parametrize("how", ["wait", "spin", "raise"])
def test_an_end_that_does_not_end_is_told(how: str) -> None:
    @asynccontextmanager
    async def hangs(flights: set[Flight]) -> AsyncIterator[None]:
        yield
        if how == "wait":
            await asyncio.sleep(60)
        while how == "spin":
            pass
        raise AppError("al terminar")

    loop = LoopThread(hangs, limit=LIMIT)
    assert loop.run(answer) == 42
    with pytest.raises(AppError, match=r"al terminar|no terminó de apagarse en 100 ms en .*test_loop.py:\d+"):
        loop.close()
    loop.close()
    with pytest.raises(RequestError, match="cerrado"):
        loop.run(answer)


def test_closing_twice_and_from_inside(loop: LoopThread, context: Context) -> None:
    async def close() -> None:
        loop.close()

    with suppress(RequestError):  # its own work may be cancelled by what it asked for
        loop.run(close)
    until(lambda: context.steps == ["in", "out"])
    loop.close()
    loop.close()


def test_closing_ends_what_is_under_way(loop: LoopThread, context: Context) -> None:
    begun = threading.Event()
    said: list[BaseException] = []

    async def hang() -> None:
        begun.set()
        await asyncio.sleep(60)

    def call() -> None:
        try:
            loop.run(hang, label="GET /x")
        except RequestError as error:
            said.append(error)

    waiting = threading.Thread(target=call)
    waiting.start()
    begun.wait()
    loop.close()
    waiting.join()
    assert "GET /x quedó a medias" in str(said[0]) and context.steps == ["in", "out"]


def test_closing_after_a_hang(loop: LoopThread) -> None:
    async def sleep() -> None:
        time.sleep(1.2)

    with pytest.raises(RequestTimeout):
        loop.run(sleep, LIMIT, "GET /x")
    loop.close()
    until(lambda: not loop.tainted)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


def test_twenty_cycles_leave_nothing() -> None:
    async def work() -> None:
        await anyio.to_thread.run_sync(lambda: None)
        await asyncio.to_thread(lambda: None)

    def cycle() -> None:
        loop = LoopThread(Context())
        loop.run(work)
        loop.close()

    cycle()
    threads, files = threading.active_count(), _open_files()
    for _ in range(20):
        cycle()
    until(lambda: threading.active_count() <= threads)
    assert _open_files() <= files
