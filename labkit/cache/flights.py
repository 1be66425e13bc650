"""Within one process, callers of the same key share one look-up and one computation.

A caller never gets what was read or begun before it came, unless that is known to be current: otherwise it could
be handed a value older than an invalidation that was acknowledged before it asked. So flights are numbered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False)
class Flight:
    """One look-up that is under way.

    Attributes:
        key: what is looked up.
        home: the event loop whose callers may join; None for threads.
        born: number of this flight. What it reads or computes is at least as new as any caller with a lower one.
        seats: where the others wait: futures, of asyncio or of threads.
        lock: the lock in Redis, once it has one.
        old: what was found in Redis.
        refresh: whether that is to be computed anew though it is served.
        away: whether Redis is.
    """

    key: str
    home: object
    born: int
    seats: list[Any] = field(default_factory=list)
    lock: Any = None
    old: Any = None
    refresh: bool = False
    away: bool = False


@dataclass(frozen=True, slots=True)
class Landed:
    """How a flight ended for those who had joined.

    Attributes:
        found: what they share; None: each looks after itself.
        settled: valid for whoever had joined, whenever that was.
        error: what the function raised.
        heir: the one who is told goes on in the place of the caller who was cancelled.
    """

    found: Any = None
    settled: bool = False
    error: Exception | None = None
    heir: bool = False


class Flights:
    """The flights of one function. Any thread may use it."""

    def __init__(self) -> None:
        self._open: dict[str, Flight] = {}
        self._lock = threading.Lock()
        self.count = 0

    def enter(self, key: str, home: object, seat: Callable[[], Any]) -> tuple[Flight, Any]:
        """The flight of ``key`` and a seat in it; no seat if it has just been opened: then the caller leads it."""
        with self._lock:
            flight = self._open.get(key)
            if flight is not None and flight.home is home:
                flight.seats.append(taken := seat())
                return flight, taken
            self.count += 1
            flight = self._open[key] = Flight(key, home, self.count)
            return flight, None

    def land(self, flight: Flight, landed: Landed) -> None:
        """End ``flight`` and tell everyone who waits for it."""
        with self._lock:
            if self._open.get(flight.key) is flight:
                del self._open[flight.key]
            seats, flight.seats = flight.seats, []
        for seat in seats:
            if not seat.done():
                seat.set_result(landed)

    def hand_over(self, flight: Flight) -> bool:
        """Give ``flight`` to somebody who waits for it; False (and it has ended) if nobody does."""
        with self._lock:
            while flight.seats:
                if not (seat := flight.seats.pop(0)).done():
                    seat.set_result(Landed(heir=True))
                    return True
            if self._open.get(flight.key) is flight:
                del self._open[flight.key]
            return False

    def detach(self, *keys: str) -> None:
        """From now on nobody joins the flights of ``keys``; who has joined shares their end."""
        with self._lock:
            for key in keys:
                self._open.pop(key, None)

    def detach_all(self) -> None:
        """The same for all keys."""
        with self._lock:
            self._open.clear()
