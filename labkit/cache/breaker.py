"""A circuit breaker: after the first failure nobody waits for Redis until a probe has found it back.

M. Nygard, Release It!, 2nd edition (2018), "Circuit Breaker"; here the probe is nobody's request.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from labkit.cache.events import Event, Observer, tell

State = Literal["closed", "open", "half_open"]


class Breaker:
    """``closed`` (Redis is used) -> ``open`` at the first failure -> ``half_open`` (a probe) -> ``closed`` or ``open``.

    Args:
        recovery: seconds that it stays open before the next caller starts a probe.
        clock: seconds that never go back; a test passes its own.
        observer: told of every change (``Event.kind == "breaker"``), from the thread that made it.

    Attributes:
        changes: the last hundred changes, as ``(clock, state, reason)``.
        lock: held at every change.

    Safe to be used by several threads.
    """

    def __init__(
        self,
        recovery: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
    ) -> None:
        self.recovery, self.observer = recovery, observer
        self.changes: deque[tuple[float, State, str]] = deque(maxlen=100)
        self.lock = threading.RLock()
        self._clock = clock
        self._state: State = "closed"
        self._again = 0.0

    @property
    def state(self) -> State:
        """``closed``, ``open`` or ``half_open``."""
        return self._state

    @property
    def closed(self) -> bool:
        """Whether Redis may be used."""
        return self._state == "closed"

    def trip(self, reason: str) -> None:
        """Something failed: open for ``recovery`` seconds. While it is open, later failures do not prolong that."""
        with self.lock:
            if self._state != "open":
                self._again = self._clock() + self.recovery
                self._change("open", reason)

    def due(self) -> bool:
        """Whether the caller is the one who has to start a probe; it is ``half_open`` from then on."""
        with self.lock:
            if self._state != "open" or self._clock() < self._again:
                return False
            self._change("half_open", "")
            return True

    def close(self, unless: Callable[[], object] = lambda: None) -> bool:
        """The probe succeeded: close, unless it was tripped anew meanwhile or ``unless()`` holds now.

        Returns:
            whether it is closed.
        """
        with self.lock:
            if self._state == "half_open" and not unless():
                self._change("closed", "")
            return self._state == "closed"

    def _change(self, state: State, reason: str) -> None:
        self._state = state
        self.changes.append((self._clock(), state, reason))
        tell(self.observer, Event("breaker", "", "", 0.0, f"{state} {reason}".strip()))

    def __repr__(self) -> str:
        return f"<Breaker {self._state}>"
