"""A first panel: how many requests, how many fail, how long they take, what the cache answers; while it happens."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from typing import Any, Self

import numpy as np
import pandas as pd

from labkit import plots
from labkit._html import card
from labkit._text import duration, number, say
from labkit.errors import MonitoringError
from labkit.monitoring._charts import NAMES, charts
from labkit.monitoring._screen import Screen
from labkit.monitoring.alert import LOOKS, Alert
from labkit.monitoring.samples import CACHE, DURATION, GETS, REQUESTS, History, Snapshot, histogram_quantile, share

_BUCKETS = f"{DURATION}_bucket"
_TOLD_APART = {REQUESTS: "status", _BUCKETS: "le", CACHE: "result"}
_MOST = 1_200  # looks that are remembered
_REST = 5  # times as long as a look took is waited before the next: the load needs the processor
_LOOKS = 4  # that a rate is made of, at least


class Panel:
    """Watches the course's metrics in a registry and draws them.

    ::

        panel = Panel(metrics)
        with panel.live():
            lab.load("/performance/fast-endpoint")

    In a notebook the picture below the cell is refreshed while the cell runs, and the last one stays. Elsewhere the
    panel only looks. The curves are what PromQL says (``samples``), the title counts everything since the first look.

    Args:
        source: a Metrics, or any registry of prometheus_client that has the course's names.
        every: seconds between two looks; more where looking takes long, as at 10,000 series.
        window: seconds that each rate looks back on; more where that would be fewer than four looks.
        alerts: evaluated at every look.
        clock: in seconds.

    Attributes:
        history: the last snapshots, for PromQL's functions.

    Raises:
        MonitoringError: if the source is no registry or does not count requests by the course's name.
    """

    def __init__(
        self,
        source: Any,
        *,
        every: float = 0.5,
        window: float = 3.0,
        alerts: Sequence[Alert] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < every < math.inf:
            raise MonitoringError(say("watch.bad_number", name="every", value=every))
        if not Snapshot.known(source, REQUESTS):
            raise MonitoringError(say("watch.no_requests", name=REQUESTS))
        self.alerts, self.history = tuple(alerts), History(window)
        self._source, self._every, self._window, self._clock = source, every, window, clock
        self._begin()

    def _begin(self) -> None:
        self._start: float | None = None
        self._counts: dict[str, dict[str, float]] = {name: {} for name in _TOLD_APART}
        self._seen = deque[tuple[float, ...]](maxlen=_MOST)

    def sample(self) -> None:
        """Look once, now."""
        now, before = Snapshot.of(self._source, *_TOLD_APART, clock=self._clock), self.history.last
        if self._start is None:
            self._start = now.time
        else:  # made anew: whoever draws in another thread reads the old ones
            grown = {name: now.since(before, name, label) for name, label in _TOLD_APART.items()}
            self._counts = {name: _sum(self._counts[name], more) for name, more in grown.items()}
        self.history.add(now)
        classes = dict.fromkeys("2345", 0.0 if len(self.history) > 1 else math.nan)
        for (status,), value in self.history.rates(REQUESTS, ("status",)).items():
            classes[status[:1]] = classes.get(status[:1], 0.0) + value
        quantiles = _quantiles({le: value for (le,), value in self.history.rates(_BUCKETS, ("le",)).items()})
        per_s = (classes[first] for first in "2345")
        shares = self.history.error_rate(), self.history.hit_rate()
        self._seen.append((now.time - self._start, *per_s, shares[0], *quantiles, shares[1]))
        for alert in self.alerts:
            alert.evaluate(self.history)

    @contextmanager
    def live(self) -> Iterator[Self]:
        """Begin anew, and look again and again while the block runs; in a notebook with a picture, once a second.

        Raises:
            Exception: what looking raised, if the block itself did not.
        """
        over, wrong = threading.Event(), list[Exception]()
        screen = Screen(lambda: (self._array(), repr(self)))

        def look() -> None:
            pause = self._every
            try:
                while not over.wait(pause):
                    began = time.thread_time()
                    self.sample()
                    pause = max(self._every, _REST * (time.thread_time() - began))
                    self.history.window = max(self._window, _LOOKS * pause)
            except Exception as error:
                wrong.append(error)

        # In the caller's context, by which a notebook knows the cell: an alert's own function may print.
        thread = threading.Thread(target=copy_context().run, args=(look,), name="labkit panel", daemon=True)
        self._begin()
        try:
            with screen:
                self.sample()
                thread.start()
                try:
                    yield self
                finally:
                    over.set()
                    thread.join()
        finally:
            if not wrong:
                self.sample()
            screen.show(*self.plot()._repr_mimebundle_())
        if wrong:
            raise wrong[0]

    def _array(self) -> Any:
        return np.array(list(self._seen) or [(0.0, *[math.nan] * (len(NAMES) - 1))])

    @property
    def df(self) -> pd.DataFrame:
        """One row a look since ``live`` began, reckoned over the window before it; NaN if there was nothing to reckon.

        ``time_s``: seconds since the first look. ``status_2xx`` ... ``status_5xx``: requests a second. ``errors``:
        share of the requests that were answered with a 5xx. ``p50_s``, ``p95_s``, ``p99_s``: percentiles of their
        duration, as fine as the buckets are. ``hit_rate``: share of the cache's look-ups that were hits.
        """
        return pd.DataFrame(list(self._seen), columns=list(NAMES))

    def plot(self) -> plots.Figure:
        """The picture as it is now, with its table."""
        return charts(self._array(), repr(self))[0]

    def __repr__(self) -> str:
        counts = self._counts
        statuses, gets = counts[REQUESTS], {result: counts[CACHE].get(result, 0.0) for result in GETS}
        if count := sum(statuses.values()):
            failed, hit_rate = share(statuses, lambda status: status.startswith("5")), share(gets, "hit".__eq__)
            p95 = _quantiles(counts[_BUCKETS])[1]
            says = [say("watch.panel", count=round(count), failed=failed)]
            says += [] if math.isnan(p95) else [f"p95 {duration(p95)}"]
            says += [] if math.isnan(hit_rate) else [f"hit rate {number(hit_rate, '.0%')}"]
        else:
            says = [say("watch.panel_none")]
        says += [
            f"{LOOKS[each.state][1]} {each.name}: {each.state}" for each in self.alerts if each.state != "inactive"
        ]
        return " · ".join(says)

    def _repr_html_(self) -> str:
        return card(repr(self), say("watch.panel_card", looks=len(self._seen), window=self.history.window))


def _quantiles(buckets: Mapping[str, float]) -> list[float]:
    bounds = [(float(bound), value) for bound, value in buckets.items()]
    return [histogram_quantile(q, bounds) for q in (0.50, 0.95, 0.99)]


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {label: one.get(label, 0.0) + other.get(label, 0.0) for label in {**one, **other}}
