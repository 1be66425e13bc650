"""The delay of an event loop, with a clock of our own."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from labkit.monitoring import LoopWatch, Metrics


class Loop:
    """What an event loop is to the watch: a clock, and things to be called."""

    def __init__(self) -> None:
        self.now = 100.0
        self.running, self.closed = True, False
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def is_running(self) -> bool:
        return self.running

    def is_closed(self) -> bool:
        return self.closed

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        self.calls.append((self.now, call))

    def call_at(self, when: float, call: Callable[[], None]) -> None:
        self.calls.append((when, call))

    def run(self, until: float) -> None:
        """Nothing disturbs it."""
        while self.calls and self.calls[0][0] <= until:
            when, call = self.calls.pop(0)
            self.now = max(self.now, when)
            call()
        self.now = until

    def block(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(name="loop")
def the_loop() -> Any:
    return Loop()


def test_what_blocks_the_loop_is_noted_once(loop: Any) -> None:
    seen: list[float] = []
    watch = LoopWatch(seen.append, interval=0.125, window=10.0)
    watch.start(loop)
    loop.run(101.0)
    assert seen == [0.0] * 8 and watch.worst == 0.0
    loop.block(2.0)  # the next tick was due 0.125 s after its beginning
    assert watch.worst == pytest.approx(1.875), "overdue, and nobody could say so yet"
    loop.run(loop.now)
    assert seen[8:] == [1.875]
    loop.run(110.0)
    assert watch.worst == 1.875 and set(seen[9:]) == {0.0}
    loop.block(1.0)
    loop.run(113.5)
    assert watch.worst == 0.875, "the first is beyond the window"


def test_a_loop_that_does_not_run_is_not_late(loop: Any) -> None:
    watch = LoopWatch()
    watch.start(loop)
    loop.run(101.0)
    loop.running = False
    loop.block(60)
    assert watch.worst == 0.0


def test_starting_again_adds_no_ticks(loop: Any) -> None:
    seen: list[float] = []
    watch = LoopWatch(seen.append, interval=0.125)
    for _ in range(3):
        watch.start(loop)
        assert len(loop.calls) == 1
    loop.run(101.0)
    watch.start(loop)
    loop.run(102.0)
    assert len(seen) == 16 and len(loop.calls) == 1


def test_the_worst_of_several_loops(loop: Any) -> None:
    other: Any = Loop()
    watch = LoopWatch()
    assert watch.worst == 0.0
    watch.start(loop)
    watch.start(other)
    loop.run(101.0)
    other.run(101.0)
    other.block(0.5)
    assert 0.3 < watch.worst <= 0.5


def test_what_is_remembered_is_bounded(loop: Any) -> None:
    watch = LoopWatch(interval=0.1, window=1.0)
    watch.start(loop)
    loop.run(200.0)
    (ticks,) = watch._ticks.values()
    assert len(ticks._late) == 10


def test_ticks_end_with_their_loop_and_with_their_watch(loop: Any) -> None:
    watch = LoopWatch()
    watch.start(loop)
    loop.run(101.0)
    loop.closed, other = True, Loop()
    watch.start(other)  # type: ignore[arg-type]
    assert list(watch._ticks) == [other]
    gone = weakref.ref(watch)
    del watch
    gc.collect()
    assert gone() is None
    other.run(200.0)
    assert other.calls == []


def test_a_real_loop_that_is_blocked() -> None:
    seen: list[float] = []
    watch = LoopWatch(seen.append, interval=0.01)

    async def main() -> None:
        watch.start()
        while not seen:
            await asyncio.sleep(0.001)
        time.sleep(0.08)
        asked = await asyncio.to_thread(lambda: watch.worst)
        assert asked > 0.04 or max(seen) > 0.04
        await asyncio.sleep(0.02)
        assert 0.04 < max(seen) <= watch.worst < 5

    asyncio.run(main())
    with pytest.raises(RuntimeError):
        watch.start()


def test_loops_of_several_threads_feed_one_histogram() -> None:
    metrics = Metrics()
    start = threading.Barrier(4)

    async def main() -> None:
        await asyncio.to_thread(start.wait, 10)
        for _ in range(20):
            assert metrics.watch_loop() is metrics.loops
        await asyncio.sleep(0.25)

    threads = [threading.Thread(target=lambda: asyncio.run(main())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ticks = metrics.registry.get_sample_value("app_event_loop_lag_seconds_count")
    assert ticks is not None and 4 <= ticks <= 12
    assert metrics.loops.worst < 5
