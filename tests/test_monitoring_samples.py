"""Snapshots, their history, and PromQL's functions: by hand, by property, and what happens at the edges."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram

from labkit.errors import MonitoringError
from labkit.monitoring.metrics import Metrics
from labkit.monitoring.samples import (
    CACHE,
    DURATION,
    REQUESTS,
    History,
    Snapshot,
    histogram_quantile,
    increase,
    rate,
    share,
)

INF = math.inf


class TestIncrease:
    """Windows of 10 s, looked at from second 10."""

    @pytest.mark.parametrize(
        ("points", "expected", "why"),
        [
            ([(0, 5), (5, 10), (10, 15)], 10, "samples on both borders: nothing is guessed"),
            ([(1, 50), (4, 60), (7, 70), (10, 80)], 30 * 10 / 9, "1 s is missing at the start, nearer than 1.1 x 3 s"),
            (
                [(6, 50), (8, 60), (10, 70)],
                20 * 5 / 4,
                "4 s are missing: the series is taken to begin half a step before",
            ),
            (
                [(2, 50), (4, 60), (6, 70)],
                20 * (4 + 2 + 1) / 4,
                "at the end as well, when it is further than 1.1 steps",
            ),
            (
                [(2, 1), (4, 11), (6, 21), (8, 31), (10, 41)],
                40 * (8 + 0.2) / 8,
                "before second 1.8 it would be negative",
            ),
            ([(0, 5), (5, 2), (10, 4)], 4, "a reset: from 0 to 2 and on to 4"),
            ([(0, 5), (5, 0), (10, 0)], 0, "a reset and nothing since"),
            ([(0, 7), (5, 7), (10, 7)], 0, "nothing happened"),
            ([(-1, 0), (0, 5), (10, 15), (11, 99)], 10, "samples outside do not count"),
            ([(6, -5), (8, -3), (10, -1)], 5, "no counter, but Prometheus takes it too: no zero to stop at"),
            ([(10, 5)], math.nan, "one sample says nothing"),
            ([], math.nan, "none says nothing"),
            ([(10, 5), (10, 6)], math.nan, "nor do two at once"),
        ],
    )
    def test_by_hand(self, points: list[tuple[float, float]], expected: float, why: str) -> None:
        assert increase(points, 10, 10) == pytest.approx(expected, nan_ok=True), why
        assert rate(points, 10, 10) == pytest.approx(expected / 10, nan_ok=True), why

    values = st.lists(st.integers(0, 1000), min_size=2, max_size=20)

    @given(values, st.floats(0.1, 100), st.floats(-5, 30))
    def test_a_counter_never_shrinks(self, values: list[int], window: float, at: float) -> None:
        grown = increase(list(enumerate(values)), window, at)
        assert math.isnan(grown) or grown >= 0

    @given(values)
    def test_with_both_borders_it_is_what_was_added(self, values: list[int]) -> None:
        values = sorted(values)
        last = len(values) - 1
        assert increase(list(enumerate(values)), last, last) == pytest.approx(values[-1] - values[0])

    @given(values, st.integers(0, 19))
    def test_a_reset_loses_nothing_that_was_seen(self, added: list[int], place: int) -> None:
        kept, wound_back = [0], [0]
        for index, value in enumerate(added):
            kept.append(kept[-1] + value)
            wound_back.append((0 if index == place else wound_back[-1]) + value)
        seen = increase(list(enumerate(wound_back)), len(added), len(added))
        # A counter that began anew and has passed its old value already looks as if it had gone on.
        hidden = added[place] >= wound_back[place] if place < len(added) else False
        assert seen == pytest.approx(kept[-1] - (wound_back[place] if hidden else 0))


class TestQuantile:
    def test_in_a_straight_line_within_a_bucket(self) -> None:
        buckets = [(0.1, 10), (0.2, 20), (0.4, 40), (INF, 40)]
        assert histogram_quantile(0.125, buckets) == pytest.approx(0.05), "the first bucket begins at 0"
        assert histogram_quantile(0.5, buckets) == pytest.approx(0.2)
        assert histogram_quantile(0.75, reversed(buckets)) == pytest.approx(0.3), "in any order"
        assert histogram_quantile(1, buckets) == pytest.approx(0.4)
        assert histogram_quantile(0.125, [(0.1, 4), (0.1, 6), *buckets[1:]]) == pytest.approx(0.05), (
            "equal bounds add up"
        )

    def test_default_buckets_make_a_p95_out_of_nothing(self) -> None:
        """T54: everything takes 0.2 ms, and the lowest bound is 5 ms."""
        assert histogram_quantile(0.95, [(0.005, 100), (0.01, 100), (INF, 100)]) == pytest.approx(0.00475)

    @pytest.mark.parametrize(
        ("q", "buckets", "expected"),
        [
            (0.9, [(0.1, 5), (0.2, 8), (INF, 10)], 0.2),  # above the highest finite bound nobody knows
            (0.1, [(-1.0, 5), (0.2, 8), (INF, 10)], -1.0),  # no zero to begin at
            (0.5, [(0.1, 0), (INF, 0)], math.nan),
            (0.5, [(0.1, 5), (0.2, 8)], math.nan),
            (0.5, [(INF, 8)], math.nan),
            (0.5, [], math.nan),
            (0.5, [(0.1, math.nan), (INF, math.nan)], math.nan),
            (0.0, [(0.1, 0), (0.2, 8), (INF, 10)], math.nan),  # as Prometheus: 0 / 0 in an empty first bucket
            (0.5, [(0.1, 5), (0.2, 4), (INF, 10)], 0.1),  # a scrape between two observations
            (-0.1, [(0.1, 5), (INF, 10)], -INF),
            (1.1, [(0.1, 5), (INF, 10)], INF),
            (math.nan, [(0.1, 5), (INF, 10)], math.nan),
        ],
    )
    def test_edges(self, q: float, buckets: list[tuple[float, float]], expected: float) -> None:
        assert histogram_quantile(q, buckets) == pytest.approx(expected, nan_ok=True)

    seen = st.lists(st.floats(0, 20), min_size=1, max_size=50)
    bounds = st.lists(st.floats(1e-4, 10), min_size=1, max_size=12, unique=True).map(sorted)

    @given(seen, bounds, st.lists(st.floats(0, 1), min_size=2, max_size=10).map(sorted))
    def test_it_rises_with_q_and_stays_in_its_bucket(
        self, seen: list[float], bounds: list[float], qs: list[float]
    ) -> None:
        buckets = [(bound, float(sum(value <= bound for value in seen))) for bound in (*bounds, INF)]
        found = [each for q in qs if not math.isnan(each := histogram_quantile(q, buckets))]
        assert all(low <= high * (1 + 1e-12) for low, high in pairwise(found))
        for q in qs:
            # NaN only for the rank 0 of an empty first bucket
            if math.isnan(value := histogram_quantile(q, buckets)):
                assert q == 0 and not buckets[0][1]
                continue
            true = sorted(seen)[max(0, math.ceil(q * len(seen) - 1e-9) - 1)]
            place = next((i for i, bound in enumerate(bounds) if true <= bound), len(bounds))
            if place == len(bounds):
                assert value == bounds[-1]
            else:
                low = bounds[place - 1] if place else 0.0
                assert low * (1 - 1e-9) <= value <= bounds[place] * (1 + 1e-9)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


class Course:
    """What a learner writes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.count = Counter(REQUESTS, "Total requests", ["method", "endpoint", "status"], registry=registry)
        self.seconds = Histogram(DURATION, "Request duration", ["method", "endpoint"], registry=registry)
        self.cache = Counter(CACHE, "Cache operations", ["operation", "result"], registry=registry)

    def request(self, endpoint: str, status: int, seconds: float, times: int = 1) -> None:
        self.count.labels("GET", endpoint, status).inc(times)
        for _ in range(times):
            self.seconds.labels("GET", endpoint).observe(seconds)


@pytest.fixture
def course(registry: CollectorRegistry) -> Course:
    return Course(registry)


class TestSnapshot:
    def test_of_the_learners_registry(self, registry: CollectorRegistry, course: Course) -> None:
        course.request("/a", 200, 0.003, 3)
        course.request("/b", 503, 0.3)
        course.request("/b", 500, 0.3)
        now = Snapshot.of(registry, clock=lambda: 7.0)
        assert now.time == 7.0
        assert now.total(REQUESTS) == 5
        assert now.total(REQUESTS, endpoint="/b") == 2
        assert now.total(REQUESTS, endpoint="/b", status="503") == 1
        assert now.total(REQUESTS, status=re.compile("5..")) == 2
        assert now.total(REQUESTS, status=re.compile("5")) == 0, "anchored, as PromQL's"
        assert now.total(REQUESTS, other="") == 5, "a label that is not there is an empty one"
        assert now.total("app_nothing_total") == 0
        assert now.total(f"{DURATION}_bucket", le="0.005") == 3
        assert not [name for name in now.values if name.endswith("_created")]
        assert "app_requests_total" in repr(now.df[now.df["value"] == 3]) and len(now.df) == sum(
            map(len, now.values.values())
        )
        assert repr(now) == "37 series de 4 nombres"

    def test_only_some_names(self, registry: CollectorRegistry, course: Course) -> None:
        course.request("/a", 200, 0.003)
        assert Snapshot.of(registry, REQUESTS).values.keys() == {REQUESTS}
        assert list(Snapshot.of(CollectorRegistry()).df.columns) == ["name", "value"]

    def test_of_metrics(self) -> None:
        metrics = Metrics()
        metrics.track_request("GET", "/a", 200, 0.003)
        assert Snapshot.of(metrics).total(REQUESTS) == 1
        assert Snapshot.known(metrics, CACHE) and Snapshot.known(metrics, DURATION)
        assert not Snapshot.known(metrics, "app_request")

    def test_what_is_no_registry(self) -> None:
        with pytest.raises(MonitoringError, match="str"):
            Snapshot.of("metrics")

    def test_growth_counts_what_prometheus_cannot_see(self, registry: CollectorRegistry, course: Course) -> None:
        course.request("/a", 200, 0.003, 3)
        before = Snapshot.of(registry, clock=lambda: 0.0)
        course.request("/a", 200, 0.003, 2)
        course.request("/new", 500, 0.003, 40)
        after = Snapshot.of(registry, clock=lambda: 1.0)
        assert after.since(before, REQUESTS, "status") == {"200": 2, "500": 40}
        assert after.since(before, REQUESTS, "endpoint") == {"/a": 2, "/new": 40}
        assert before.since(after, REQUESTS, "status") == {"200": 3}, "began anew"
        history = History()
        history.add(before)
        history.add(after)
        assert history.error_rate() == 0, "a series counts from its second sample on"


class TestHistory:
    def test_rates_by_label(self, registry: CollectorRegistry, course: Course) -> None:
        history = History(10)
        assert len(history) == 0 and history.rates(REQUESTS) == {} and math.isnan(history.error_rate())
        for second in range(11):
            history.add(Snapshot.of(registry, clock=lambda: float(second)))  # noqa: B023
            course.request("/a", 200, 0.003, 3)
            course.request("/b", 503, 0.003)
            course.cache.labels("get", "hit").inc(3)
            course.cache.labels("get", "stale").inc(1)
            course.cache.labels("set", "ok").inc(9)
        # The series begin at second 1 with what was counted by then: by the growth of a step later they were 0.
        assert history.rates(REQUESTS, ("status",)) == pytest.approx({("200",): 3, ("503",): 1})
        assert history.rates(REQUESTS, ("endpoint", "status"), status="200") == pytest.approx({("/a", "200"): 3})
        assert history.rates(REQUESTS, window=2, at=5.0)[()] == pytest.approx(4)
        assert history.rate(REQUESTS, status=re.compile("5..")) == pytest.approx(1)
        assert math.isnan(history.rate(REQUESTS, status="404"))
        assert history.error_rate() == pytest.approx(0.25)
        assert history.hit_rate() == pytest.approx(0.75)
        assert history.quantile(0.5) == pytest.approx(0.0025)
        assert history.quantile(0.5, window=3, endpoint="/b") == pytest.approx(0.0025)
        assert math.isnan(history.quantile(0.5, endpoint="/c"))

    def test_it_forgets(self, registry: CollectorRegistry) -> None:
        history = History(10)
        for second in range(100):
            history.add(Snapshot(float(second), {}))
        assert len(history) == 21 and history.last.time == 99

    def test_a_window_is_above_0(self) -> None:
        for window in (0, -1, math.nan):
            with pytest.raises(MonitoringError, match="window"):
                History(window)

    def test_quiet_is_no_error_rate(self, registry: CollectorRegistry, course: Course) -> None:
        course.request("/a", 500, 0.003)
        history = History(10)
        for second in range(5):
            history.add(Snapshot.of(registry, clock=lambda: float(second)))  # noqa: B023
        assert math.isnan(history.error_rate()) and math.isnan(history.quantile(0.95))
        assert math.isnan(share({}, bool))
