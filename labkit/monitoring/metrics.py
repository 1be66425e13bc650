"""The instruments of an application, on a registry that is passed in: the course's six and what belongs to them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from math import inf
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess, values
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from labkit._text import say
from labkit.errors import MonitoringError
from labkit.monitoring._requests import PLAIN, Level, PlainRequests, Series, SharedRequests
from labkit.monitoring.database import OPERATIONS, POOL_STATES, DatabaseWatch
from labkit.monitoring.lag import LoopWatch
from labkit.monitoring.system import SystemCollector, workers
from labkit.monitoring.users import ActiveUsers

# Each at most 1.67 times the one before: a quantile that is worked out from them is never further off than that.
BUCKETS = (*(float(f"{step}e{power}") for power in range(-4, 1) for step in (1, 1.5, 2, 3, 5, 7)), 10.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"  # what every Prometheus reads
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_CACHE_RESULTS = frozenset(("hit", "miss", "stale", "error", "bypass"))


class Metrics:
    """Everything that is counted about an application, ready for Prometheus.

    Args:
        registry: where the instruments live; default: a new one. With a registry that has them already (a cell that
            runs again) the counting goes on: all ``Metrics`` of one registry are one.
        version, environment: what ``app_info`` says.
        buckets: upper bounds of ``app_request_duration_seconds``, in seconds.
        clock: of the active users, in seconds.

    Attributes:
        registry: the one that was given, or the new one.
        in_progress: of the requests that are being answered, with ``inc()`` and ``dec()``.
        users: those of the last 5 minutes.
        loops: the event loops that are watched; ``loops.worst`` is the longest delay of the last seconds.

    Raises:
        MonitoringError: if it is no registry, if somebody else's metric in it has one of our names, if it was used
            with other buckets, or if PROMETHEUS_MULTIPROC_DIR is no folder or was set too late.

    With PROMETHEUS_MULTIPROC_DIR set before Python starts, several worker processes count together and each can answer
    for all: counters and histograms are added up, those of workers that have ended included; gauges are added up over
    the workers that live, and are a second old at most. Active users are counted by each worker, and who was served by
    two of them counts twice: no fewer than there are. Processes have a series each. One ``Metrics`` a process, then:
    two would write to the same numbers. Empty the folder before the service starts.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        version: str = "1.0.0",
        environment: str = "development",
        buckets: Sequence[float] = BUCKETS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        registry = CollectorRegistry() if registry is None else registry
        if not isinstance(registry, CollectorRegistry):
            raise MonitoringError(say("metrics.no_registry", value=repr(registry)))
        known: dict[str, Any] | None = vars(registry).get("_labkit_metrics")
        if known is None:
            self._build(registry, tuple(buckets), clock)
            vars(registry)["_labkit_metrics"] = vars(self)
        elif tuple(buckets) not in (BUCKETS, known["_buckets"]):
            raise MonitoringError(say("metrics.other_buckets"))
        else:
            self.__dict__ = known
        if not self._together:  # nothing can be taken away from what several workers share
            self._info.clear()
        self._info.labels(version, environment).set(1)

    def _build(self, registry: CollectorRegistry, buckets: tuple[float, ...], clock: Callable[[], float]) -> None:
        self.registry, self._buckets = registry, buckets
        self._together = _several_workers()
        try:
            if any(not low < high for low, high in pairwise((-inf, *buckets))):  # each may stand there once only
                raise ValueError(buckets)
            plain = PLAIN and not self._together
            self._requests = PlainRequests(buckets) if plain else SharedRequests(buckets)
            self._under_way = _gauge("app_requests_in_progress", "Requests being answered.")
            self.in_progress = Level(self._under_way) if plain else self._under_way
            self._active = _gauge("app_active_users", "Different users of the last 5 minutes.")
            self._queries = Counter(
                "app_database_queries_total", "SQL statements sent to the database.", ["operation"], registry=None
            )
            self._cache = Counter(
                "app_cache_operations_total", "Uses of the cache.", ["operation", "result"], registry=None
            )
            self._info = _gauge("app_info", "What runs here; always 1.", ["version", "environment"], "livemax")
            self._lag = Histogram(
                "app_event_loop_lag_seconds", "How late the event loop was.", buckets=LAG_BUCKETS, registry=None
            )
            self._pool = _gauge("app_database_pool_connections", "Connections in the database pool.", ["state"])
            self._limit = _gauge("app_database_pool_limit", "Connections that the pool may open at most.")
        except (TypeError, ValueError) as error:
            raise MonitoringError(say("metrics.bad_buckets", buckets=buckets)) from error
        except OSError as error:
            raise MonitoringError(say("metrics.no_folder", folder=error.filename)) from error
        self._system = SystemCollector(workers if self._together else lambda: [os.getpid()])
        self._register()
        self._counted: dict[Hashable, Callable[[], None]] = {}
        self.users = ActiveUsers(clock=clock)
        self._database = DatabaseWatch(self.track_database_query)
        self.loops = LoopWatch(self._ticked)
        self._pools, self._next = False, 0.0
        self._live: list[tuple[Gauge, Callable[[], float]]] = []
        self._follow(self._active, self.users.count)

    def _register(self) -> None:
        """All of them or none."""
        single = [each for each in vars(self).values() if isinstance(each, MetricWrapperBase | SystemCollector)]
        ours = [*self._requests.collectors, *dict.fromkeys(single)]  # the gauge of what is under way may be there twice
        done: list[Any] = []
        try:
            for each in ours:
                self.registry.register(each)
                done.append(each)
        except ValueError as error:
            for each in done:
                self.registry.unregister(each)
            names = ", ".join(sorted(getattr(error, "duplicates", ()))) or error
            raise MonitoringError(say("metrics.taken", names=names)) from error

    # What the course calls

    def track_request(self, method: str, endpoint: str, status: int | str, duration: float, size: int = 0) -> None:
        """Count one request: ``duration`` in seconds, ``size`` in bytes. ``endpoint`` is the route's template."""
        self.series(method, endpoint, status).record(duration, size)

    def track_database_query(self, operation: str) -> None:
        """Count one SQL statement; what is none of `database.OPERATIONS` counts as ``OTHER``."""
        word = operation.upper()
        word = word if word in OPERATIONS else "OTHER"
        self._bound(word, self._queries, word)()

    def track_cache_operation(self, operation: str, result: str) -> None:
        """Count one use of the cache, for example ``"get"`` and ``"hit"``."""
        self._bound((operation, result), self._cache, operation, result)()

    # What feeds them

    def series(self, method: str, endpoint: str, status: int | str) -> Series:
        """The instruments of these labels, looked up once: ``series(...).record(seconds, size)``."""
        return self._requests.series(method, endpoint, status)

    def saw(self, user: Hashable) -> None:
        """This user has made a request: one of ``app_active_users`` for the next 5 minutes."""
        self.users.saw(user)

    def on_cache(self, event: Any) -> None:
        """An observer for what labkit's cache keeps: ``@cached(..., observer=metrics.on_cache)``."""
        if event.kind in _CACHE_RESULTS:
            self.track_cache_operation("get", event.kind)

    def watch_engine(self, engine: Any) -> Callable[[], None]:
        """Count the statements of a SQLAlchemy engine, sync or async, and show how its pool is used.

        Statements are also written to the log ``labkit.sql``: each as DEBUG, those of 0.1 s or more as WARNING.

        Returns:
            What ends it.

        Raises:
            MonitoringError: if it is no engine.
        """
        end = self._database.watch(engine)
        if self._database.limit() and not self._pools:
            self._pools = True
            for state in POOL_STATES:
                self._follow(self._pool.labels(state), partial(self._database.connections, state))
            self._follow(self._limit, self._database.limit)
        return end

    def watch_loop(self, loop: asyncio.AbstractEventLoop | None = None) -> LoopWatch:
        """Measure how late an event loop is (default: the running one), until it ends.

        Raises:
            RuntimeError: if there is no running loop, or the one that is given is closed.
        """
        self.loops.start(loop)
        return self.loops

    # What Prometheus reads

    def render(self) -> tuple[bytes, str]:
        """What ``/metrics`` answers: the text and its content type. Waits for nothing."""
        registry = self.registry
        if self._together:
            self._publish()
            for gone in workers(alive=False):
                with suppress(OSError):  # another worker was quicker
                    multiprocess.mark_process_dead(gone)  # type: ignore[no-untyped-call]
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            registry.register(self._system)
        return generate_latest(_WithoutCreated(registry)), CONTENT_TYPE

    def _bound(self, key: Hashable, counter: Counter, *labels: str) -> Callable[[], None]:
        """``inc`` of a counter's child, looked up once."""
        found = self._counted.get(key)
        if found is None:
            found = self._counted[key] = counter.labels(*labels).inc
        return found

    def _follow(self, gauge: Gauge, number: Callable[[], float]) -> None:
        gauge.set_function(number)
        self._live.append((gauge, number))

    def _ticked(self, late: float) -> None:
        self._lag.observe(late)
        if self._together and time.monotonic() >= self._next:
            self._publish()

    def _publish(self) -> None:
        """Tell the other workers what is only known here."""
        self._next = time.monotonic() + 1.0
        for gauge, number in self._live:
            gauge.set(number())


class _WithoutCreated(CollectorRegistry):
    """A registry without the ``_created`` series, one for each of the others, that no lesson and no panel uses."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._whole = registry

    def collect(self) -> Iterable[Metric]:
        for metric in self._whole.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


def _gauge(name: str, text: str, labels: Sequence[str] = (), mode: Any = "livesum") -> Gauge:
    return Gauge(name, text, labels, multiprocess_mode=mode, registry=None)


def _several_workers() -> bool:
    wanted = bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
    if wanted and not getattr(values.ValueClass, "_multiprocess", False):
        raise MonitoringError(say("metrics.too_late"))
    return wanted
