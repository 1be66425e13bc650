"""What a registry holds, looked at again and again, and what PromQL makes of it: rate, increase, histogram_quantile.

The three functions are those of Prometheus (``promql/functions.go`` and ``promql/quantile.go``), with its
extrapolation and its handling of counter resets, so that a figure here and a query there say the same. A test asks
a real Prometheus. Where Prometheus has no answer (too few samples, nothing observed), there is NaN here.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from re import Pattern
from time import monotonic
from typing import Any, Self

import pandas as pd

from labkit._text import say
from labkit.errors import MonitoringError

Labels = tuple[tuple[str, str], ...]  # of one series, sorted by name
Points = Sequence[tuple[float, float]]  # of one series: seconds and values, oldest first
Where = str | Pattern[str]  # what a label has to be: ``label="..."`` or, compiled, ``label=~"..."`` of PromQL

REQUESTS = "app_requests_total"
DURATION = "app_request_duration_seconds"
CACHE = "app_cache_operations_total"
GETS = ("hit", "miss", "stale", "bypass", "error")  # results of asking the cache for something


def increase(points: Points, window: float, at: float) -> float:
    """By how much a counter grew in the ``window`` seconds up to ``at``: ``increase(counter[window])``.

    A value below its predecessor is a counter that began anew at 0. The samples seldom lie on the borders of the
    window: if the first or the last is nearer to its border than 1.1 times the average distance between samples, the
    growth is carried on up to there (never to before the counter was 0), else by half of that distance. So the
    increase of a counter is seldom a whole number. A series counts from its second sample on, as in Prometheus.

    Prometheus 2.42 is meant. Newer ones compare with the border first and look for the counter's zero second, which
    says less for a series that began in the window.

    Returns:
        The increase; NaN with fewer than two samples in the window, its borders included.
    """
    inside = [(moment, value) for moment, value in points if at - window <= moment <= at]
    if len(inside) < 2:
        return math.nan
    (first, base), (last, end) = inside[0], inside[-1]
    grown = end - base
    for (_, before), (_, after) in pairwise(inside):
        if after < before:
            grown += before
    covered = last - first
    if not covered > 0:
        return math.nan
    step = covered / (len(inside) - 1)
    to_start, to_end = first - (at - window), at - last
    if grown > 0 and base >= 0:
        to_start = min(to_start, covered * (base / grown))
    reach = covered + sum(gap if gap < 1.1 * step else step / 2 for gap in (to_start, to_end))
    return grown * (reach / covered)


def rate(points: Points, window: float, at: float) -> float:
    """How fast a counter grew, a second: ``rate(counter[window])``, see ``increase``."""
    return increase(points, window, at) / window


def histogram_quantile(q: float, buckets: Iterable[tuple[float, float]]) -> float:
    """The value below which the share ``q`` of what was observed lies, as far as buckets tell.

    Within a bucket it is taken to rise in a straight line, from 0 in the first one if its bound is above 0. So the
    answer is never finer than the buckets: with bounds of 5 ms, 10 ms, ... what takes 0.2 ms "has" a p95 of 4.75 ms.

    Args:
        q: from 0 to 1; below it is -inf, above +inf.
        buckets: upper bounds (``le``) and how many observations were at most that, or how many a second.

    Returns:
        NaN if nothing was observed or the bucket of +Inf is missing; the highest finite bound if the answer lies above
        it.
    """
    if math.isnan(q) or q < 0 or q > 1:
        return math.nan if math.isnan(q) else math.copysign(math.inf, q)
    merged: dict[float, float] = {}
    for bound, count in sorted(buckets):
        merged[bound] = merged.get(bound, 0.0) + count
    bounds, counts = list(merged), list[float]()
    for count in merged.values():  # a scrape may fall between two observations: no bucket holds less than a lower one
        counts.append(max(count, counts[-1]) if counts else count)
    if len(bounds) < 2 or bounds[-1] != math.inf or not counts[-1] > 0:
        return math.nan
    rank = q * counts[-1]
    place = bisect_left(counts, rank, hi=len(counts) - 1)
    if place == len(counts) - 1:
        return bounds[-2]
    if place == 0 and bounds[0] <= 0:
        return bounds[0]
    start, below = (bounds[place - 1], counts[place - 1]) if place else (0.0, 0.0)
    held = counts[place] - below
    return start + (bounds[place] - start) * ((rank - below) / held) if held else math.nan


@dataclass(frozen=True, slots=True, repr=False)
class Snapshot:
    """What a registry held at one moment: for each name of a sample its series and their values.

    Attributes:
        time: seconds of the clock that was used.
        values: name, then labels, then value.
    """

    time: float
    values: Mapping[str, Mapping[Labels, float]]

    @classmethod
    def of(cls, source: Any, *names: str, clock: Callable[[], float] = monotonic) -> Self:
        """Look at a registry, or at what has one as ``.registry``.

        Args:
            source: a CollectorRegistry of prometheus_client, or a Metrics.
            names: of the samples to take, as they are exported (``app_requests_total``); by default all but
                ``_created``, which are moments.
            clock: for the moment.

        Raises:
            MonitoringError: if the source is none.
        """
        registry = _registry(source)
        if names and hasattr(registry, "restricted_registry"):
            registry = registry.restricted_registry(list(names))
        values: dict[str, dict[Labels, float]] = {}
        for family in registry.collect():
            for sample in family.samples:
                if sample.name in names if names else not sample.name.endswith("_created"):
                    labels = tuple(sorted(sample.labels.items()))
                    values.setdefault(sample.name, {})[labels] = float(sample.value)
        return cls(clock(), values)

    def series(self, name: str, **where: Where) -> Iterator[tuple[Labels, float]]:
        """The series of a name whose labels are as asked, with their values."""
        for labels, value in self.values.get(name, {}).items():
            if not where or _fits(labels, where):
                yield labels, value

    def since(self, before: Snapshot, name: str, by: str) -> dict[str, float]:
        """By how much counters grew since an earlier snapshot, summed by one label.

        Unlike PromQL's ``increase`` it is exact: it knows the first value of a series that was not there before, and
        guesses nothing beyond the two snapshots. What is below its earlier value began anew at 0.
        """
        grown: dict[str, float] = {}
        earlier = before.values.get(name, {})
        for labels, value in self.values.get(name, {}).items():
            base = earlier.get(labels, 0.0)
            group = dict(labels).get(by, "")
            grown[group] = grown.get(group, 0.0) + (value - base if value >= base else value)
        return grown

    def total(self, name: str, **where: Where) -> float:
        """The sum of those series: ``sum(name{label="..."})``; 0 without any."""
        return math.fsum(value for _, value in self.series(name, **where))

    @staticmethod
    def known(source: Any, name: str) -> bool:
        """Whether a registry has a metric that exports this name, be it without any series yet."""
        return any(name in (family.name, f"{family.name}_total") for family in _registry(source).collect())

    @property
    def df(self) -> pd.DataFrame:
        """One row a series: ``name``, its labels as columns, ``value``."""
        rows = [
            {"name": name, **dict(labels), "value": value}
            for name, series in self.values.items()
            for labels, value in series.items()
        ]
        return pd.DataFrame(rows, columns=None if rows else ["name", "value"])

    def __repr__(self) -> str:
        return say("watch.snapshot", series=sum(map(len, self.values.values())), names=len(self.values))


def _registry(source: Any) -> Any:
    registry = getattr(source, "registry", source)
    if not hasattr(registry, "collect"):
        raise MonitoringError(say("watch.no_registry", type=type(source).__name__))
    return registry


def _fits(labels: Labels, where: Mapping[str, Where]) -> bool:
    has = dict(labels)
    return all(
        has.get(label, "") == wanted if isinstance(wanted, str) else wanted.fullmatch(has.get(label, "")) is not None
        for label, wanted in where.items()
    )


class History:
    """The last snapshots of a registry: what a Prometheus that scrapes it would know.

    Args:
        window: seconds that rates look back on, unless told otherwise.
        keep: for how many seconds a snapshot is kept; by default the window and as much again.

    Attributes:
        window: may be changed.
    """

    def __init__(self, window: float = 15.0, *, keep: float | None = None) -> None:
        if not window > 0:
            raise MonitoringError(say("watch.bad_number", name="window", value=window))
        self.window = window
        self._keep = keep
        self._snapshots: deque[Snapshot] = deque()

    def __len__(self) -> int:
        return len(self._snapshots)

    def add(self, snapshot: Snapshot) -> None:
        """Take in a newer snapshot and let go of the old ones."""
        self._snapshots.append(snapshot)
        keep = 2 * self.window if self._keep is None else self._keep
        while self._snapshots[0].time < snapshot.time - keep:
            self._snapshots.popleft()

    @property
    def last(self) -> Snapshot:
        """The newest snapshot; an empty one before the first."""
        return self._snapshots[-1] if self._snapshots else Snapshot(-math.inf, {})

    def rates(
        self, name: str, by: Sequence[str] = (), *, window: float | None = None, at: float | None = None, **where: Where
    ) -> dict[tuple[str, ...], float]:
        """``sum by (by) (rate(name{label="..."}[window]))``, at the moment of the newest snapshot.

        Args:
            name: of a counter, as it is exported.
            by: labels to keep apart; the keys of the answer hold their values in this order.
            window: seconds to look back on.
            at: another moment.
            where: what labels have to be.

        Returns:
            The rates of the groups that have one; nothing for those with fewer than two samples.
        """
        window, at = window or self.window, self.last.time if at is None else at
        series: dict[Labels, list[tuple[float, float]]] = {}
        for snapshot in self._snapshots:
            if at - window <= snapshot.time <= at:
                for labels, count in snapshot.series(name, **where):
                    series.setdefault(labels, []).append((snapshot.time, count))
        sums: dict[tuple[str, ...], float] = {}
        for labels, points in series.items():
            value = rate(points, window, at)
            if not math.isnan(value):
                has = dict(labels)
                group = tuple(has.get(label, "") for label in by)
                sums[group] = sums.get(group, 0.0) + value
        return sums

    def rate(self, name: str, *, window: float | None = None, at: float | None = None, **where: Where) -> float:
        """``sum(rate(name{label="..."}[window]))``; NaN if no series has a rate."""
        return self.rates(name, (), window=window, at=at, **where).get((), math.nan)

    def quantile(
        self, q: float, name: str = DURATION, *, window: float | None = None, at: float | None = None, **where: Where
    ) -> float:
        """``histogram_quantile(q, sum by (le) (rate(name_bucket[window])))``: in the unit of the histogram."""
        found = self.rates(f"{name}_bucket", ("le",), window=window, at=at, **where)
        return histogram_quantile(q, ((float(bound), value) for (bound,), value in found.items()))

    def error_rate(self, *, window: float | None = None, at: float | None = None) -> float:
        """The share of the requests that were answered with a 5xx, 0 to 1; NaN without requests."""
        found = self.rates(REQUESTS, ("status",), window=window, at=at)
        return share({status: value for (status,), value in found.items()}, lambda status: status.startswith("5"))

    def hit_rate(self, *, window: float | None = None, at: float | None = None) -> float:
        """The share of the look-ups that the cache could answer, 0 to 1; NaN without any. Stale is no hit."""
        found = self.rates(CACHE, ("result",), window=window, at=at)
        return share({result: value for (result,), value in found.items() if result in GETS}, "hit".__eq__)


def share(amounts: Mapping[str, float], counts: Callable[[str], bool]) -> float:
    """The part of the whole that ``counts``; NaN of nothing."""
    whole = sum(amounts.values())
    return sum(amount for label, amount in amounts.items() if counts(label)) / whole if whole > 0 else math.nan
