"""How long to keep each value, learned from how often it is asked for and how often it changes.

Where answers are asked for and change at random (``λ`` and ``μ`` times a second), a value that lives ``T`` seconds
serves ``λT`` hits a fill, of which about ``λμT²/2`` are stale. Most hits for a given number of stale answers, all keys
together, come where one more hit costs every key the same: ``T + λT²/2 = θ/μ``, so

    T = (√(1 + 2λθ/μ) − 1) / λ        about √(2θ/(λμ)) for a key asked for often, θ/μ for one asked for rarely.

What is hot or changes often lives shorter, but only by the root. ``μ`` is estimated from whether the value differed
at each fill (Cho and Garcia-Molina, "Estimating frequency of change", ACM TOIT 2003); ``θ`` is raised while fewer
answers are stale than allowed, and lowered while more are.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from labkit._text import say
from labkit.errors import CacheError

_KEEP = 0.95  # of what earlier fills of a key say, at each new one: some twenty of them count
_KEEP_ALL = 0.999  # the same for all keys together, from which a new key borrows
_PRIOR = 0.15  # changes that are borrowed: little, or what never changes would never be trusted
_SLOW = 1000  # answers of budget kept or overdrawn that change θ by the factor e


@dataclass(slots=True)
class _Seen:
    """Sums over the fills of a key (or of all), older ones weighing less, and what its present value has lived."""

    fills: float = 0.0
    changes: float = 0.0
    seconds: float = 0.0
    answers: float = 0.0
    filled: float = 0.0
    digest: int | None = None
    ttl: float = 0.0
    hits: int = 0

    def add(self, keep: float, changed: bool, seconds: float, answers: int) -> None:
        self.fills = self.fills * keep + 1
        self.changes = self.changes * keep + changed
        self.seconds = self.seconds * keep + seconds
        self.answers = self.answers * keep + answers


class AdaptiveTTL:
    """A time to live for each key, given as ``cached(ttl=AdaptiveTTL(...))``.

    Counts are those of this process. A value that holds the time it was made at differs at every fill and gets the
    shortest life. Keys are forgotten, the longest unfilled first, beyond ``most``: about 0.5 KB each.

    Args:
        staleness: share of all answers that may be older than the last change of what they tell, in the long run.
        shortest, longest: bounds of every life in seconds.
        most: keys that are remembered.
        clock: seconds; the tests and replays put in a false one.

    Raises:
        CacheError: if an argument is out of range.
    """

    def __init__(
        self,
        staleness: float = 0.02,
        *,
        shortest: float = 1.0,
        longest: float = 86_400.0,
        most: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not (0 < staleness < 1 and 0 < shortest <= longest < math.inf and most >= 1):
            given = f"staleness={staleness}, shortest={shortest}, longest={longest}, most={most}"
            raise CacheError(say("smart.bad_adaptive", given=given))
        self.staleness, self.shortest, self.longest, self.most = staleness, shortest, longest, most
        self._clock, self._theta = clock, staleness
        self._keys: OrderedDict[str, _Seen] = OrderedDict()
        self._all = _Seen()

    def seen(self, key: str) -> None:
        """The cache has answered for ``key``. Costs a look-up and an addition."""
        if known := self._keys.get(key):
            known.hits += 1

    def filled(self, key: str, data: bytes) -> float:
        """``data`` has just been computed for ``key``: seconds that it shall live."""
        now, digest = self._clock(), hash(data)
        known = self._keys.setdefault(key, _Seen())
        self._keys.move_to_end(key)
        if len(self._keys) > self.most:
            self._keys.popitem(last=False)
        if known.digest is not None:
            self._learn(known, max(now - known.filled, 1e-9), digest != known.digest)
        accesses, changes = self._rates(known)
        life = (math.sqrt(1 + 2 * accesses * self._theta / changes) - 1) / accesses
        known.ttl = max(self.shortest, min(self.longest, life))
        known.filled, known.digest, known.hits = now, digest, 0
        return known.ttl

    def forget(self, key: str) -> None:
        """``key`` has been invalidated: its change was announced, so the next fill tells nothing about silent ones."""
        if known := self._keys.get(key):
            known.digest = None

    @property
    def df(self) -> pd.DataFrame:
        """One row a key: accesses and changes a second as estimated, and its present life in seconds."""
        rows = [(key, *self._rates(known), known.ttl) for key, known in list(self._keys.items())]
        return pd.DataFrame(rows, columns=["key", "accesses_per_s", "changes_per_s", "ttl_s"])

    def __repr__(self) -> str:
        return say("smart.adaptive", keys=len(self._keys), staleness=100 * self.staleness)

    def _learn(self, known: _Seen, seconds: float, changed: bool) -> None:
        answers = known.hits + 1
        known.add(_KEEP, changed, seconds, answers)
        self._all.add(_KEEP_ALL, changed, seconds, answers)
        # One change, at any moment since the fill: it fell into the life or into the wait that followed it.
        stale = known.hits * min(1.0, known.ttl / 2 / seconds) if changed else 0.0
        step = (self.staleness * answers - stale) / self.staleness / _SLOW
        self._theta *= math.exp(max(-0.5, min(0.5, step)))
        self._theta = max(self.staleness / 10, min(100.0, self._theta))

    def _rates(self, known: _Seen) -> tuple[float, float]:
        """Accesses and changes a second; of a new key as of all, but colder, as most keys are."""
        every = self._all
        if not every.fills:
            return 1 / self.shortest, 1 / self.shortest
        usual = max(every.changes, 0.5) / every.seconds
        if not known.fills:
            return 0.1 * every.answers / every.seconds, usual
        # Several changes between two fills are seen as one: hence the logarithm.
        unchanged = (known.fills - known.changes + 0.5) / (known.fills + 0.5)
        changes = _PRIOR - math.log(unchanged) * known.fills
        return known.answers / known.seconds, changes / (known.seconds + _PRIOR / usual)
