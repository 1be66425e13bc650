"""How late an event loop is: what a blocking call in ``async def`` does to everybody else."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

INTERVAL = 0.1  # seconds between two ticks
WINDOW = 10.0  # seconds that ``worst`` looks back


class LoopWatch:
    """Asks each watched event loop for a tick every ``interval`` seconds and notes how late it comes.

    A loop that is blocked for a while is late by what was left of it when the tick was due. Nothing has to be
    ended: the ticks end with their loop.

    Args:
        observe: called with the seconds of each tick's delay.
        interval: seconds between two ticks.
        window: seconds that ``worst`` looks back.
    """

    def __init__(
        self, observe: Callable[[float], object] | None = None, *, interval: float = INTERVAL, window: float = WINDOW
    ) -> None:
        self._observe, self._interval, self._window = observe, interval, window
        self._ticks: dict[asyncio.AbstractEventLoop, _Ticks] = {}

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Watch this loop (default: the running one). Watching it already costs a look-up.

        Raises:
            RuntimeError: if there is no running loop, or the one that is given is closed.
        """
        loop = loop or asyncio.get_running_loop()
        if loop in self._ticks:
            return
        for ended in [each for each in tuple(self._ticks) if each.is_closed()]:
            self._ticks.pop(ended, None)
        ticks = self._ticks[loop] = _Ticks(loop, self._interval, self._window, self._observe)
        loop.call_soon_threadsafe(ticks.ask)

    @property
    def worst(self) -> float:
        """Seconds: the longest delay within the window, a tick that is overdue at this moment included.

        May be asked from any thread.
        """
        return max((ticks.worst() for ticks in tuple(self._ticks.values())), default=0.0)


class _Ticks:
    """The ticks of one loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        interval: float,
        window: float,
        observe: Callable[[float], object] | None,
    ) -> None:
        self._loop, self._interval, self._window, self._observe = loop, interval, window, observe
        self._late: deque[tuple[float, float]] = deque(maxlen=max(1, round(window / interval)))
        self._due = float("inf")

    def ask(self) -> None:
        self._due = self._loop.time() + self._interval
        self._loop.call_at(self._due, self._tick)

    def _tick(self) -> None:
        now = self._loop.time()
        late = max(0.0, now - self._due)
        self._late.append((now, late))
        if self._observe is not None:
            self._observe(late)
        self.ask()

    def worst(self) -> float:
        now = self._loop.time()
        overdue = now - self._due if self._loop.is_running() else 0.0
        return max(overdue, 0.0, *(late for when, late in tuple(self._late) if when > now - self._window))
