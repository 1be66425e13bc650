"""What a strategy decides: how long a value stays in Redis, and what to do with one that was found there."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from labkit.cache.entry import Entry


class Verdict(Enum):
    """What to do with a value that was found."""

    FRESH = "serve it"
    STALE = "serve it, and have it refreshed behind the caller's back"
    EXPIRED = "compute it anew"


class Strategy(Protocol):
    """One way to use a cache. Seconds everywhere; ``now`` is the clock's time since 1970, as ``Entry.created``."""

    def keep(self, ttl: float) -> float:
        """How long a value that is fresh for ``ttl`` seconds stays in Redis."""

    def judge(self, entry: Entry, now: float, chance: float) -> Verdict:
        """What to do with ``entry``. ``chance`` is a random number from 0 up to, not including, 1."""

    def rescue(self, entry: Entry, now: float) -> bool:
        """Whether ``entry``, though expired, is served where computing it anew failed."""
