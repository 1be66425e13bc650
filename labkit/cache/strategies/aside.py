"""Cache-aside: look into the cache; if there is nothing, compute and leave it there. The default."""

from __future__ import annotations

from labkit.cache.entry import Entry
from labkit.cache.strategies.base import Verdict


class CacheAside:
    """A value is served while it is fresh, then computed anew by whoever asks next."""

    def keep(self, ttl: float) -> float:
        return ttl

    def judge(self, entry: Entry, now: float, chance: float) -> Verdict:
        return Verdict.FRESH if now < entry.created + entry.fresh else Verdict.EXPIRED

    def rescue(self, entry: Entry, now: float) -> bool:
        return False
