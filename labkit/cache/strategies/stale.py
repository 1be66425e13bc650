"""Old values that are better than waiting, or than an error (RFC 5861)."""

from __future__ import annotations

from labkit.cache.client import checked_ttl
from labkit.cache.entry import Entry
from labkit.cache.strategies.aside import CacheAside
from labkit.cache.strategies.base import Verdict


class StaleIfError(CacheAside):
    """Where computing a value anew fails, the old one is served.

    A failure is an exception, or an answer from 500 on; an ``HTTPException`` below 500 is an answer, not a failure.

    Args:
        window: seconds beyond its life for which an old value may be served.

    Raises:
        CacheError: if ``window`` is not a number above 0.
    """

    def __init__(self, window: float) -> None:
        self.window = checked_ttl(window)

    def keep(self, ttl: float) -> float:
        return ttl + self.window

    def rescue(self, entry: Entry, now: float) -> bool:
        return now < entry.created + entry.fresh + self.window


class StaleWhileRevalidate(StaleIfError):
    """Beyond its life an old value is served at once, while it is computed anew behind the caller's back."""

    def judge(self, entry: Entry, now: float, chance: float) -> Verdict:
        verdict = super().judge(entry, now, chance)
        return Verdict.STALE if verdict is Verdict.EXPIRED and self.rescue(entry, now) else verdict
