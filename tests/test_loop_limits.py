"""What hangs is stopped, by a limit or by an interrupt, and the next call works."""

from __future__ import annotations

import _thread
import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio.to_thread
import pytest

from labkit._home import Home
from labkit._loop import LoopThread
from labkit._threads import Stopped, stop
from labkit.errors import RequestError, RequestTimeout
from tests.looping import LIMIT, Context, answer, the_context, the_loop, until  # noqa: F401 (the fixtures)


def test_a_wait_is_cancelled_where_it_waits(loop: LoopThread, context: Context) -> None:
    ended = threading.Event()

    async def hang() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(RequestTimeout, match=r"no terminó en 100 ms: esperaba en .*test_loop_limits.py:\d+"):
        loop.run(hang, LIMIT, "GET /x")
    assert ended.is_set() and loop.run(answer) == 42 and context.steps == ["in"]


def test_what_will_not_be_cancelled_is_left(loop: LoopThread, context: Context) -> None:
    release = threading.Event()

    async def stubborn() -> None:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.05)

    with pytest.raises(RequestTimeout, match=r"no se deja cancelar en .*test_loop_limits.py:\d+"):
        loop.run(stubborn, LIMIT, "GET /x")
    assert loop.run(answer) == 42 and context.steps == ["in"] and loop.tainted
    release.set()
    until(lambda: not loop.tainted)


def test_a_loop_that_spins_is_freed_and_kept(loop: LoopThread, context: Context) -> None:
    async def spin() -> None:
        while True:
            pass

    with pytest.raises(RequestTimeout, match=r"bloqueó el bucle.* en .*test_loop_limits.py:\d+.*Lo detuve"):
        loop.run(spin, LIMIT, "GET /x")
    assert loop.run(answer) == 42 and context.steps == ["in"] and not loop.tainted


def test_a_loop_that_sleeps_is_replaced(loop: LoopThread, context: Context) -> None:
    woken = threading.Event()

    async def sleep() -> None:
        try:
            time.sleep(1.2)
        finally:
            woken.set()

    with pytest.raises(RequestTimeout, match=r"test_loop_limits.py:\d+.*abro uno nuevo"):
        loop.run(sleep, LIMIT, "GET /x")
    assert not woken.is_set() and loop.tainted
    assert loop.run(answer) == 42 and context.steps == ["in", "in"]
    assert woken.wait(5)
    until(lambda: not loop.tainted)
    assert loop.run(answer) == 42
    assert context.steps == [
        "in",
        "in",
    ]  # the end of the abandoned context would close the new one's resources


async def in_executor(job: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, job)


pools = pytest.mark.parametrize("pool", [anyio.to_thread.run_sync, asyncio.to_thread, in_executor])


@pools
def test_a_worker_that_spins_is_stopped(pool: Any, loop: LoopThread) -> None:
    def spin() -> None:
        while True:
            pass

    with pytest.raises(RequestTimeout, match=r"seguía en marcha en .*test_loop_limits.py:\d+.*Lo detuve"):
        loop.run(lambda: pool(spin), LIMIT, "GET /x")
    assert loop.run(answer) == 42 and not loop.tainted
    assert loop.run(lambda: pool(threading.get_ident))


@pools
def test_a_worker_beside_it_goes_on(pool: Any, loop: LoopThread) -> None:
    release, results = threading.Event(), list[int]()

    def patient() -> int:
        while not release.is_set():
            time.sleep(0.01)
        return 7

    beside = threading.Thread(target=lambda: results.append(loop.run(lambda: pool(patient), label="GET /patient")))
    loop.start()
    beside.start()

    def spin() -> None:
        while True:
            pass

    with pytest.raises(RequestTimeout):
        loop.run(lambda: pool(spin), LIMIT, "GET /x")
    release.set()
    beside.join()
    assert results == [7]


@pools
def test_a_worker_that_sleeps_is_left(pool: Any, loop: LoopThread, context: Context) -> None:
    release = threading.Event()

    with pytest.raises(RequestTimeout, match=r"sigue en un hilo"):
        loop.run(lambda: pool(lambda: release.wait(30)), LIMIT, "GET /x")
    assert loop.tainted and loop.run(answer) == 42 and context.steps == ["in"]
    release.set()
    until(lambda: not loop.tainted)


@pools
def test_a_worker_that_catches_everything_taints_the_timings(pool: Any, loop: LoopThread) -> None:
    release = threading.Event()

    def turn() -> None:
        while not release.is_set():
            pass

    def spin() -> None:
        while not release.is_set():
            with suppress(BaseException):
                turn()

    with pytest.raises(RequestTimeout):
        loop.run(lambda: pool(spin), LIMIT, "GET /x")
    assert loop.tainted and loop.run(answer) == 42
    release.set()
    until(lambda: not loop.tainted)


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


def test_an_interrupted_end_is_not_taken_for_the_end() -> None:
    """On Python 3.11 an interrupted ``Thread.join`` marks the thread as ended while it still runs."""
    ending, go = threading.Event(), threading.Event()

    @asynccontextmanager
    async def slow_to_end(flights: object) -> AsyncIterator[None]:
        yield
        ending.set()
        await asyncio.to_thread(go.wait, 10)

    def interrupt() -> None:
        ending.wait(10)
        time.sleep(0.2)  # until the caller waits for the end
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    home = Home(slow_to_end)
    assert home.started.get(timeout=5) is None
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        home.leave(30)
    assert not home.leave(0.05), "it still runs"
    go.set()
    assert home.leave(5)


def test_a_caller_that_is_stopped_leaves_nothing_behind(loop: LoopThread) -> None:
    """A check runs in a thread of its own, which is stopped where it takes too long or the cell is interrupted."""
    begun, ended = threading.Event(), threading.Event()

    async def block() -> None:
        begun.set()
        try:
            while True:
                pass
        finally:
            ended.set()

    def call() -> None:
        with suppress(Stopped):
            loop.run(block, 60, "GET /x")

    caller = threading.Thread(target=call)
    caller.start()
    assert begun.wait(5)
    stop(caller.ident or 0)
    assert ended.wait(10), "the loop is freed long before the limit of the call"
    caller.join()
    assert loop.run(answer) == 42


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
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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
