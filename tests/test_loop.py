"""A loop in a thread of its own: it answers, it stops what hangs, it ends."""

from __future__ import annotations

import _thread
import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from labkit._home import Flight
from labkit._loop import LoopThread
from labkit.errors import AppError, RequestError, RequestTimeout

LIMIT = 0.1


class Context:
    """Notes how often it was entered and left."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    @asynccontextmanager
    async def __call__(self, flights: set[Flight]) -> AsyncIterator[None]:
        self.steps.append("in")
        try:
            yield
        finally:
            self.steps.append("out")


@pytest.fixture
def context() -> Context:
    return Context()


@pytest.fixture
def loop(context: Context) -> Iterator[LoopThread]:
    thread = LoopThread(context, limit=2.0)
    yield thread
    with suppress(AppError):
        thread.close()


async def answer() -> int:
    return 42


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


# Limits


def test_a_wait_is_cancelled_where_it_waits(loop: LoopThread, context: Context) -> None:
    ended = threading.Event()

    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(RequestTimeout, match=r"GET /x no terminó en 100 ms: esperaba en .*test_loop.py:\d+"):
        loop.run(hang, LIMIT, "GET /x")
    assert ended.is_set() and loop.run(answer) == 42 and context.steps == ["in"]


def test_what_will_not_be_cancelled_is_left(loop: LoopThread, context: Context) -> None:
    release = threading.Event()

    async def stubborn() -> None:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    with pytest.raises(RequestTimeout):
        loop.run(stubborn, LIMIT, "GET /x")
    assert loop.run(answer) == 42 and context.steps == ["in"]
    release.set()


def test_a_loop_that_spins_is_freed_and_kept(loop: LoopThread, context: Context) -> None:
    async def spin() -> None:
        while True:
            pass

    with pytest.raises(RequestTimeout, match=r"bloqueó el bucle de eventos en .*test_loop.py:\d+.*Lo detuve"):
        loop.run(spin, LIMIT, "GET /x")
    assert loop.run(answer) == 42 and context.steps == ["in"] and not loop.tainted


def test_a_loop_that_sleeps_is_replaced(loop: LoopThread, context: Context) -> None:
    woken = threading.Event()

    async def sleep() -> None:
        try:
            time.sleep(1.2)
        finally:
            woken.set()

    with pytest.raises(RequestTimeout, match=r"test_loop.py:\d+.*abro uno nuevo"):
        loop.run(sleep, LIMIT, "GET /x")
    assert not woken.is_set() and loop.tainted
    assert loop.run(answer) == 42 and context.steps == ["in", "in"]
    assert woken.wait(5)
    _until(lambda: not loop.tainted)
    assert loop.run(answer) == 42
    assert context.steps == [
        "in",
        "in",
    ]  # the end of the abandoned context would close the new one's resources


def test_a_worker_that_spins_is_stopped(loop: LoopThread) -> None:
    def spin() -> None:
        while True:
            pass

    with pytest.raises(RequestTimeout, match=r"no salía de ahí en .*test_loop.py:\d+.*Lo detuve"):
        loop.run(lambda: anyio.to_thread.run_sync(spin), LIMIT, "GET /x")
    assert loop.run(answer) == 42 and not loop.tainted


def test_a_worker_that_sleeps_is_left(loop: LoopThread, context: Context) -> None:
    release = threading.Event()

    with pytest.raises(RequestTimeout, match=r"sigue en un hilo"):
        loop.run(lambda: anyio.to_thread.run_sync(lambda: release.wait(30)), LIMIT, "GET /x")
    assert loop.tainted and loop.run(answer) == 42 and context.steps == ["in"]
    release.set()
    _until(lambda: not loop.tainted)


def test_who_waits_behind_a_blocked_loop_is_told_too(loop: LoopThread) -> None:
    said: list[BaseException] = []
    begun = threading.Event()

    async def sleep() -> None:
        begun.set()
        time.sleep(1.2)

    def other() -> None:
        begun.wait()
        try:
            loop.run(answer, label="GET /other")
        except RequestError as error:
            said.append(error)

    waiting = threading.Thread(target=other)
    waiting.start()
    with pytest.raises(RequestTimeout):
        loop.run(sleep, LIMIT, "GET /x")
    waiting.join()
    assert "GET /other" in str(said[0]) and loop.run(answer) == 42


def _until(true: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# Interrupts


def interrupt_when(begun: threading.Event) -> None:
    def work() -> None:
        begun.wait()
        _thread.interrupt_main()

    threading.Thread(target=work).start()


def test_an_interrupt_frees_the_caller_and_cancels_what_it_waited_for(loop: LoopThread) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def hang() -> None:
        try:
            begun.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    interrupt_when(begun)
    with pytest.raises(KeyboardInterrupt):
        loop.run(hang, 30, "GET /x")
    assert cancelled.wait(5) and loop.run(answer) == 42


@pytest.mark.parametrize("how", ["spin", "sleep"])
def test_an_interrupt_frees_a_blocked_loop_too(loop: LoopThread, context: Context, how: str) -> None:
    begun = threading.Event()

    async def block() -> None:
        begun.set()
        while how == "spin":
            pass
        time.sleep(1.2)

    interrupt_when(begun)
    with pytest.raises(KeyboardInterrupt):
        loop.run(block, 30, "GET /x")
    assert loop.run(answer) == 42
    assert context.steps == (["in"] if how == "spin" else ["in", "in"])


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
    _until(lambda: not loop.tainted)


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
    with pytest.raises(AppError, match=r"al terminar|no acabó en 100 ms en .*test_loop.py:\d+"):
        loop.close()
    loop.close()
    with pytest.raises(RequestError, match="cerrado"):
        loop.run(answer)


def test_closing_twice_and_from_inside(loop: LoopThread, context: Context) -> None:
    async def close() -> None:
        loop.close()

    with suppress(RequestError):  # its own work may be cancelled by what it asked for
        loop.run(close)
    _until(lambda: context.steps == ["in", "out"])
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
    _until(lambda: not loop.tainted)


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
    _until(lambda: threading.active_count() <= threads)
    assert _open_files() <= files


PROGRAM = """
    import asyncio, signal, sys, threading, time
    from contextlib import asynccontextmanager
    import anyio.to_thread
    from labkit._loop import LoopThread

    @asynccontextmanager
    async def context(flights):
        yield
        if {end!r} == "hang": await asyncio.sleep(60)
        if {end!r} == "block": time.sleep(60)

    async def wait(): await asyncio.sleep(60)
    async def block(): time.sleep(60)
    async def spin():
        while True: pass
    async def worker(): await anyio.to_thread.run_sync(time.sleep, 60)
    async def pool(): await asyncio.to_thread(time.sleep, 60)
    async def answer(): return 42

    loop = LoopThread(context)
    if {signalled!r}:
        def tell():
            time.sleep(0.3)
            print("ready", flush=True)
        threading.Thread(target=tell).start()
        try:
            loop.run({hang}, 60, "GET /x")
        except KeyboardInterrupt:
            print("free", loop.run(answer), flush=True)
    else:
        try:
            loop.run({hang}, 0.1, "GET /x")
        except Exception as error:
            print(type(error).__name__, loop.run(answer), flush=True)
"""


def start(hang: str, *, end: str = "", signalled: bool = False) -> subprocess.Popen[str]:
    program = textwrap.dedent(PROGRAM).format(hang=hang, end=end, signalled=signalled)
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_interpreter_exits_whatever_hangs() -> None:
    kinds = [
        ("wait", ""),
        ("block", ""),
        ("spin", ""),
        ("worker", ""),
        ("pool", ""),
        ("wait", "hang"),
        ("wait", "block"),
    ]
    children = [start(hang, end=end) for hang, end in kinds]
    for child in children:
        with child:
            out, err = child.communicate(timeout=20)  # far less than the 60 s that it would hang
        assert (child.returncode, out, err) == (0, "RequestTimeout 42\n", ""), child.args


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent to a process on POSIX only")
def test_a_real_interrupt_frees_at_once() -> None:
    children = [start(hang, signalled=True) for hang in ("wait", "block", "worker")]
    for child in children:
        with child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=20)
        assert (child.returncode, out, err) == (0, "free 42\n", ""), child.args
