"""How late an event loop is: what a blocking call in ``async def`` does to everybody else."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from math import inf

INTERVAL = 0.1  # seconds between two ticks
WINDOW = 10.0  # seconds that ``worst`` looks back


class LoopWatch:
    """Asks each watched event loop for a tick every ``interval`` seconds and notes how late it comes.

    A loop that is blocked for a while is late by what was left of it when the tick was due. Nothing has to be
    ended: the ticks end with their loop, or when nobody holds the watch any more.

    Args:
        observe: called with the delay of each tick, in seconds.
        interval: seconds between two ticks.
        window: seconds that ``worst`` looks back.
    """

    def __init__(
        self, observe: Callable[[float], object] | None = None, *, interval: float = INTERVAL, window: float = WINDOW
    ) -> None:
        self.observe, self.interval, self.window = observe, interval, window
        self._ticks: dict[asyncio.AbstractEventLoop, _Ticks] = {}

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Watch this loop (default: the running one), from whichever thread. Once it is watched, that costs nothing.

        Raises:
            RuntimeError: if there is no running loop, or the one that is given is closed.
        """
        loop = loop or asyncio.get_running_loop()
        if loop in self._ticks:
            return
        for ended in [each for each in tuple(self._ticks) if each.is_closed()]:
            self._ticks.pop(ended, None)
        ticks = self._ticks.setdefault(loop, _Ticks(self, loop))
        loop.call_soon_threadsafe(ticks.begin)

    @property
    def worst(self) -> float:
        """Seconds: the longest delay within the window, a tick that is overdue at this moment included.

        May be asked from any thread; 0 if no loop is watched.
        """
        return max((ticks.worst(self.window) for ticks in tuple(self._ticks.values())), default=0.0)


class _Ticks:
    """The ticks of one loop. It knows its watch weakly: the loop, which holds it, may live much longer."""

    def __init__(self, watch: LoopWatch, loop: asyncio.AbstractEventLoop) -> None:
        self._watch, self._loop = weakref.ref(watch), loop
        self._late: deque[tuple[float, float]] = deque(maxlen=max(1, round(watch.window / watch.interval)))
        self._due = inf

    def begin(self) -> None:
        if self._due == inf and (watch := self._watch()) is not None:
            self._ask(watch.interval)

    def worst(self, window: float) -> float:
        now = self._loop.time()
        overdue = now - self._due if self._loop.is_running() else 0.0
        return max(0.0, overdue, *(late for when, late in tuple(self._late) if when > now - window))

    def _ask(self, interval: float) -> None:
        self._due = self._loop.time() + interval
        self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        if (watch := self._watch()) is None:
            return
        now = self._loop.time()
        late = max(0.0, now - self._due)
        self._late.append((now, late))
        if watch.observe is not None:
            watch.observe(late)
        self._ask(watch.interval)
