"""The numbers of the requests, kept as plain numbers: recording one takes a tenth of what Prometheus' instruments take.

There are no locks. Python with a global lock changes threads between calls and jumps only, never within ``x += 1`` on
numbers; without that lock, and where several worker processes count together, Prometheus' instruments do it.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Protocol

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

PLAIN = getattr(sys, "_is_gil_enabled", lambda: True)()  # whether plain numbers are safe
_EACH, _ALL = ("method", "endpoint", "status"), ("method", "endpoint")
_REQUESTS = "app_requests", "Requests answered.", _EACH
_SECONDS = "app_request_duration_seconds", "Time from a request to the last byte of its answer.", _ALL
_BYTES = "app_response_bytes", "Bytes of the bodies sent.", _ALL


class Series(Protocol):
    """The numbers of one method, endpoint and status."""

    def record(self, seconds: float, size: int = 0) -> None:
        """One request: how long it took, and how many bytes its body had."""


class Level:
    """How many of something there are at the moment, as a gauge shows it."""

    __slots__ = ("value",)

    def __init__(self, gauge: Gauge) -> None:
        self.value = 0
        gauge.set_function(lambda: self.value)

    def inc(self) -> None:
        """One more."""
        self.value += 1

    def dec(self) -> None:
        """One less."""
        self.value -= 1


class PlainSeries:
    """A ``Series`` of this process.

    Attributes:
        buckets: requests by the first of the bounds that they do not exceed, those above all of them last.
        seconds: of all requests.
        bytes: of all bodies.
    """

    __slots__ = ("_bounds", "buckets", "bytes", "seconds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self.buckets = bounds, [0] * (len(bounds) + 1)
        self.seconds, self.bytes = 0.0, 0

    def record(self, seconds: float, size: int = 0) -> None:
        bucket = bisect_left(self._bounds, seconds)
        self.buckets[bucket] += 1
        self.seconds += seconds
        self.bytes += size


class SharedSeries:
    """A ``Series`` in which several workers count."""

    __slots__ = ("_bytes", "_count", "_seconds")

    def __init__(self, count: Counter, seconds: Histogram, size: Counter) -> None:
        self._count, self._seconds, self._bytes = count.inc, seconds.observe, size.inc

    def record(self, seconds: float, size: int = 0) -> None:
        self._count()
        self._seconds(seconds)
        if size:
            self._bytes(size)


class PlainRequests(Collector):
    """All requests of this process.

    Args:
        bounds: upper bounds of the buckets, in seconds.

    Attributes:
        collectors: what a registry has to know.

    Raises:
        ValueError: if Prometheus takes no such buckets.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        Histogram(*_SECONDS, buckets=bounds, registry=None)  # raises
        self._bounds = tuple(float(bound) for bound in bounds if bound < inf)
        self._series: dict[tuple[str, str, str], PlainSeries] = {}
        self.collectors: list[Collector] = [self]

    def series(self, method: str, endpoint: str, status: int | str) -> Series:
        """The one of these labels."""
        labels = str(method), str(endpoint), str(status)
        return self._series.get(labels) or self._series.setdefault(labels, PlainSeries(self._bounds))

    def describe(self) -> Iterable[Metric]:
        """The metrics without a sample, by whose names a registry knows who else has them."""
        return self._metrics({})

    def collect(self) -> Iterable[Metric]:
        """The samples."""
        return self._metrics(self._series.copy())

    def _metrics(self, series: dict[tuple[str, str, str], PlainSeries]) -> Iterator[Metric]:
        requests = CounterMetricFamily(*_REQUESTS[:2], labels=_EACH)
        seconds = HistogramMetricFamily(*_SECONDS[:2], labels=_ALL)
        size = CounterMetricFamily(*_BYTES[:2], labels=_ALL)
        whole: dict[tuple[str, str], PlainSeries] = {}
        for (method, endpoint, status), one in series.items():
            counts = [*one.buckets]
            requests.add_metric([method, endpoint, status], sum(counts))
            together = whole.setdefault((method, endpoint), PlainSeries(self._bounds))
            together.buckets = [*map(sum, zip(together.buckets, counts, strict=True))]
            together.seconds += one.seconds
            together.bytes += one.bytes
        for labels, one in whole.items():
            running, cumulative = 0, []
            for bound, count in zip((*self._bounds, inf), one.buckets, strict=True):
                running += count
                cumulative.append((floatToGoString(bound), running))  # type: ignore[no-untyped-call]
            seconds.add_metric(labels, cumulative, one.seconds)
            size.add_metric(labels, one.bytes)
        yield from (requests, seconds, size)


class SharedRequests:
    """All requests that several workers have answered; else as ``PlainRequests``."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._count = Counter(*_REQUESTS, registry=None)
        self._seconds = Histogram(*_SECONDS, buckets=bounds, registry=None)
        self._bytes = Counter(*_BYTES, registry=None)
        self.collectors: list[Collector] = [self._count, self._seconds, self._bytes]

    def series(self, method: str, endpoint: str, status: int | str) -> Series:
        """The one of these labels."""
        seconds, size = self._seconds.labels(method, endpoint), self._bytes.labels(method, endpoint)
        return SharedSeries(self._count.labels(method, endpoint, status), seconds, size)
