"""Early refresh: compute a value anew shortly before it expires, the dearer the earlier.

A. Vattani, F. Chierichetti, K. Lowenstein: "Optimal probabilistic cache stampede prevention", VLDB 2015 (XFetch).
"""

from __future__ import annotations

import math

from labkit._text import say
from labkit.cache.entry import Entry
from labkit.cache.strategies.aside import CacheAside
from labkit.cache.strategies.base import Verdict
from labkit.errors import CacheError


class EarlyRefresh(CacheAside):
    """Each caller may, by chance, have a value refreshed behind its back before it expires.

    Args:
        beta: above 1 earlier, below 1 later; 1 suits most.

    Raises:
        CacheError: if ``beta`` is not a number above 0.
    """

    def __init__(self, beta: float = 1.0) -> None:
        if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < math.inf:
            raise CacheError(say("cached.bad_beta", beta=repr(beta)))
        self.beta = beta

    def judge(self, entry: Entry, now: float, chance: float) -> Verdict:
        ahead = -entry.cost * self.beta * math.log(1.0 - chance)
        if ahead and now < entry.created + entry.fresh <= now + ahead:
            return Verdict.STALE
        return super().judge(entry, now, chance)
