"""Stopping a thread: at once in Python, later in C, and without harm to the others meanwhile."""

from __future__ import annotations

import threading
import time
from cProfile import Profile

from labkit._threads import Stopped, stop


def started(work: object, ended: list[str]) -> threading.Thread:
    def target() -> None:
        try:
            work()  # type: ignore[operator]
            ended.append("by itself")
        except Stopped:
            ended.append("stopped")

    thread = threading.Thread(target=target)
    thread.start()
    return thread


def spin() -> None:
    for _ in iter(int, 1):
        pass


def test_a_python_loop_ends_at_once() -> None:
    ended: list[str] = []
    thread = started(spin, ended)
    assert thread.ident
    stop(thread.ident)
    thread.join(10)
    assert ended == ["stopped"]


def test_a_thread_blocked_in_c_is_stopped_later_and_hangs_no_profiler_until_then() -> None:
    """On Python 3.11 a profiled thread would spin for as long as the other one is blocked."""
    ended: list[str] = []
    inside, free = threading.Event(), threading.Lock()
    free.acquire()

    def blocked() -> None:
        inside.set()
        with free:
            time.sleep(0)

    thread = started(blocked, ended)
    assert inside.wait(10) and thread.ident
    stop(thread.ident)
    watchdog = threading.Timer(20, free.release)  # so that a failure is one, and no hang
    watchdog.start()
    profiler = Profile()
    profiler.enable()
    sum(range(len("profiled")))
    began = time.monotonic()
    spun(3)
    took = time.monotonic() - began
    profiler.disable()
    watchdog.cancel()
    assert took < 10 and ended == []
    free.release()
    thread.join(10)
    assert ended == ["stopped"]


def spun(n: int) -> int:
    return n
