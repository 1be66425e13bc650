"""The instruments: the course's names, one set a registry, numbers that several workers agree about."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from labkit import settings
from labkit.errors import MonitoringError
from labkit.monitoring import BUCKETS, Metrics

COURSE = {
    "app_requests": ("counter", {"method", "endpoint", "status"}),
    "app_request_duration_seconds": ("histogram", {"method", "endpoint"}),
    "app_active_users": ("gauge", set()),
    "app_database_queries": ("counter", {"operation"}),
    "app_cache_operations": ("counter", {"operation", "result"}),
    "app_info": ("gauge", {"version", "environment"}),
}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: bytes) -> Samples:
    """Values by name and labels, as Prometheus reads them; a series that comes twice is an error."""
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for one in family.samples:
            key = one.name, tuple(sorted(one.labels.items()))
            assert key not in found, key
            found[key] = one.value
    return found


def read(metrics: Metrics, name: str, **labels: str) -> float | None:
    value = parsed(metrics.render()[0]).get((name, tuple(sorted(labels.items()))))
    assert value == metrics.registry.get_sample_value(name, labels)
    return value


# The course's names


def test_the_courses_six_have_its_names_and_labels() -> None:
    metrics = Metrics(version="2.1.0", environment="testing")
    metrics.track_request("GET", "/users/{user_id}", 200, 0.003, 512)
    metrics.track_database_query("SELECT")
    metrics.track_cache_operation("get", "hit")
    metrics.saw("ana")
    text, kind = metrics.render()
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(text.decode())}
    for name, (type_, labels) in COURSE.items():
        assert families[name].type == type_
        assert families[name].samples, name
        assert all(set(one.labels) - {"le"} == labels for one in families[name].samples), name
    endpoint = {"method": "GET", "endpoint": "/users/{user_id}"}
    assert read(metrics, "app_requests_total", **endpoint, status="200") == 1
    assert read(metrics, "app_request_duration_seconds_sum", **endpoint) == 0.003
    assert read(metrics, "app_response_bytes_total", **endpoint) == 512
    assert read(metrics, "app_database_queries_total", operation="SELECT") == 1
    assert read(metrics, "app_cache_operations_total", operation="get", result="hit") == 1
    assert read(metrics, "app_active_users") == 1
    assert read(metrics, "app_info", version="2.1.0", environment="testing") == 1
    assert b"app_info_info" not in text and b"_created" not in text


def test_what_the_middleware_uses() -> None:
    metrics = Metrics()
    series = metrics.series("GET", "/", 200)
    assert metrics.series("GET", "/", 200) is series
    series.record(0.25, 100)
    metrics.series("GET", "/", 503).record(0.5)
    metrics.in_progress.inc()
    endpoint = {"method": "GET", "endpoint": "/"}
    assert [read(metrics, "app_requests_total", **endpoint, status=status) for status in ("200", "503")] == [1, 1]
    assert read(metrics, "app_request_duration_seconds_count", **endpoint) == 2
    assert read(metrics, "app_request_duration_seconds_bucket", **endpoint, le="0.3") == 1
    assert read(metrics, "app_response_bytes_total", **endpoint) == 100
    assert read(metrics, "app_requests_in_progress") == 1
    metrics.in_progress.dec()
    assert read(metrics, "app_requests_in_progress") == 0


def test_the_caches_events_are_its_operations() -> None:
    metrics = Metrics()
    for kind in ("hit", "hit", "miss", "stale", "error", "bypass", "breaker", "something new"):
        metrics.on_cache(SimpleNamespace(kind=kind, function="f", key="k", seconds=0.1, detail=""))
    found = parsed(metrics.render()[0]).items()
    assert {dict(labels)["result"]: value for (name, labels), value in found if "cache" in name} == {
        "hit": 2,
        "miss": 1,
        "stale": 1,
        "error": 1,
        "bypass": 1,
    }


def test_active_users_are_those_of_the_last_five_minutes_at_the_scrape() -> None:
    now = [0.0]
    metrics = Metrics(clock=lambda: now[0])
    assert read(metrics, "app_active_users") == 0
    for user in ("ana", "luis", "ana", ("10.0.0.7", 5)):
        metrics.saw(user)
    assert read(metrics, "app_active_users") == 3
    now[0] = 300.0
    assert read(metrics, "app_active_users") == 0


RECORD = st.tuples(
    st.sampled_from(["GET", "POST"]),
    st.sampled_from(["/", "/users/{user_id}"]),
    st.sampled_from([200, "200", 404]),
    st.one_of(st.sampled_from(BUCKETS), st.floats(0, 20)),
    st.integers(0, 10**7),
)


@given(st.lists(RECORD, max_size=40), st.sampled_from([BUCKETS, (1, 5, math.inf)]))
def test_plain_numbers_say_what_prometheus_instruments_say(records: list[Any], buckets: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plain = Metrics(buckets=buckets)
        patch.setattr("labkit.monitoring.metrics.PLAIN", False)  # as without a global lock
        whole = Metrics(buckets=buckets)
    for metrics in (plain, whole):
        metrics.in_progress.inc()
        for record in records:
            metrics.track_request(*record)
    one, other = (
        {key: value for key, value in parsed(metrics.render()[0]).items() if key[0].startswith("app_re")}
        for metrics in (plain, whole)
    )
    assert one == pytest.approx(other) and one["app_requests_in_progress", ()] == 1
    help_ = [
        [line for line in metrics.render()[0].splitlines() if line.startswith(b"# ") and b" app_re" in line]
        for metrics in (plain, whole)
    ]
    assert sorted(help_[0]) == sorted(help_[1]) and len(help_[0]) == 8


@pytest.mark.parametrize("plain", [True, False])
def test_threads_lose_nothing(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.monitoring.metrics.PLAIN", plain)
    metrics = Metrics()
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for i in range(500):
            metrics.in_progress.inc()
            metrics.series("GET", f"/{i % 50}", 200).record(0.001, 10)
            metrics.track_database_query("SELECT")
            metrics.in_progress.dec()
            if not i % 100:
                metrics.render()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = parsed(metrics.render()[0])
    sums = {name: sum(value for (each, _), value in found.items() if each == name) for name, _ in found}
    assert sums["app_requests_total"] == sums["app_request_duration_seconds_count"] == 4_000
    assert (sums["app_response_bytes_total"], sums["app_requests_in_progress"]) == (40_000, 0)
    assert sums["app_database_queries_total"] == 4_000


# The registry


def test_a_cell_that_runs_again_goes_on_counting() -> None:
    registry = CollectorRegistry()
    first = Metrics(registry, version="1.0.0")
    first.track_request("GET", "/", 200, 0.1)
    first.saw("ana")
    second = Metrics(registry, version="1.1.0")
    second.track_request("GET", "/", 200, 0.1)
    second.saw("luis")
    for metrics in (first, second):
        assert read(metrics, "app_requests_total", method="GET", endpoint="/", status="200") == 2
        assert read(metrics, "app_active_users") == 2
        assert read(metrics, "app_info", version="1.0.0", environment="development") is None
        assert read(metrics, "app_info", version="1.1.0", environment="development") == 1
        assert metrics.registry is registry


def test_two_metrics_share_nothing() -> None:
    one, other = Metrics(), Metrics()
    one.track_request("GET", "/", 200, 0.1)
    assert read(other, "app_requests_total", method="GET", endpoint="/", status="200") is None


def test_what_else_is_in_the_registry_is_shown_too() -> None:
    registry = CollectorRegistry()
    Gauge("orders_open", "Orders.", registry=registry).set(7)
    Histogram("orders_seconds", "Orders.", registry=registry).observe(1)
    text, _ = Metrics(registry).render()
    assert b"orders_open 7.0" in text and b"orders_seconds_count 1.0" in text
    assert b"_created" not in text and b"_created" in generate_latest(registry)


@pytest.mark.parametrize("name", ["app_requests_total", "app_active_users", "app_process_threads"])
def test_somebody_elses_metric_of_our_name_is_an_error_and_leaves_nothing_behind(name: str) -> None:
    registry = CollectorRegistry()
    theirs = (Counter if name.endswith("total") else Gauge)(name, "Theirs.", registry=registry)
    before = generate_latest(registry)
    with pytest.raises(MonitoringError, match=rf"{name.removesuffix('_total')}.*Metrics\(\)"):
        Metrics(registry)
    assert generate_latest(registry) == before
    registry.unregister(theirs)
    Metrics(registry).track_request("GET", "/", 200, 0.1)


@pytest.mark.parametrize("wrong", [5, "registry", Metrics()])
def test_something_else_is_no_registry(wrong: Any) -> None:
    with pytest.raises(MonitoringError, match=r"registry=.*Metrics\(\)"):
        Metrics(wrong)


def test_other_buckets_need_another_registry() -> None:
    metrics = Metrics(buckets=[0.1, 1])
    assert Metrics(metrics.registry, buckets=(0.1, 1)).registry is Metrics(metrics.registry).registry
    with pytest.raises(MonitoringError, match="buckets"):
        Metrics(metrics.registry, buckets=(0.2, 1))
    for wrong in ((1, 0.1), (), (1, 1), (float("nan"),), ("a", "b")):  # twice the same bound: no scrape is accepted
        with pytest.raises(MonitoringError, match="buckets="):
            Metrics(buckets=wrong)


def test_the_settings_of_several_workers_are_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    settings.set_language("en")
    with pytest.raises(MonitoringError, match="before Python starts"):
        Metrics()


# The buckets (T54)


def histogram_quantile(q: float, buckets: list[tuple[float, float]]) -> float:
    """As Prometheus computes it: the rank's bucket, and a straight line in it."""
    rank = q * buckets[-1][1]
    index = next(i for i, (_, count) in enumerate(buckets) if count >= rank)
    if index == len(buckets) - 1:
        return buckets[-2][0]
    start, below = buckets[index - 1] if index else (0.0, 0.0)
    end, count = buckets[index]
    return start + (end - start) * (rank - below) / (count - below)


def estimate(q: float, seconds: list[float], metrics: Metrics) -> float:
    series = metrics.series("GET", "/", 200)
    for each in seconds:
        series.record(each)
    found = parsed(metrics.render()[0]).items()
    buckets = [
        (dict(labels)["le"], count) for (name, labels), count in found if name.endswith("duration_seconds_bucket")
    ]
    return histogram_quantile(q, sorted((float(bound), count) for bound, count in buckets))


def true(q: float, seconds: list[float]) -> float:
    return sorted(seconds)[math.ceil(q * len(seconds)) - 1]


def test_p95_of_a_fast_endpoint_is_right_where_the_usual_buckets_are_far_off() -> None:
    dice = random.Random(4)
    seconds = [0.0002 * dice.lognormvariate(0, 0.25) for _ in range(2_000)]
    usual = estimate(0.95, seconds, Metrics(buckets=Histogram.DEFAULT_BUCKETS))
    ours = estimate(0.95, seconds, Metrics())
    assert usual / true(0.95, seconds) > 10
    assert 1 / 1.5 < ours / true(0.95, seconds) < 1.5


@given(
    st.lists(st.floats(0.000101, 10), min_size=1, max_size=200),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
def test_a_quantile_is_never_further_off_than_a_bucket_is_wide(seconds: list[float], q: float) -> None:
    found = estimate(q, seconds, Metrics())
    assert 1 / 1.67 < found / true(q, seconds) < 1.67


def test_buckets_reach_from_a_tenth_of_a_millisecond_to_ten_seconds() -> None:
    assert (BUCKETS[0], BUCKETS[-1], len(BUCKETS)) == (0.0001, 10.0, 31)
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert {0.001, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0} < set(BUCKETS), "the limits that people promise"


# Several workers (T56)

WORKER = """
import asyncio, json, sys, threading
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool
from labkit.monitoring import Metrics

metrics = Metrics(version="1.0.0")
engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=2)
metrics.watch_engine(engine)
held = []

def ask(words):
    match words:
        case ["request", status, count]:
            for _ in range(int(count)):
                metrics.track_request("GET", "/", int(status), 0.0002, 10)
        case ["begin"]:
            metrics.in_progress.inc()
        case ["saw", user]:
            metrics.saw(user)
        case ["connect"]:
            held.append(engine.connect())
        case ["statement"]:
            held[0].execute(text("SELECT 1"))
        case ["render"]:
            return metrics.render()[0].decode()

async def main():
    metrics.watch_loop()
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(ask(line.split())), flush=True)

print(json.dumps("ready"), flush=True)
asyncio.run(main())
"""


class Worker:
    """A process that counts what it is told to."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        command, pipe = [sys.executable, "-c", WORKER], subprocess.PIPE
        environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
        self.process = stack.enter_context(
            subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        )
        stack.callback(self.process.kill)
        self.pid = str(self.process.pid)

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def __call__(self, *words: object) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self.hear()

    def scrape(self) -> Samples:
        """What it says, but for what changes from one moment to the next."""
        found = parsed(self("render").encode())
        moving = ("app_process", "app_system", "app_event_loop")
        self.names = {name for name, _ in found}
        self.processes = {dict(labels)["pid"] for name, labels in found if name == "app_process_threads"}
        return {key: value for key, value in found.items() if not key[0].startswith(moving)}


@pytest.fixture(name="workers")
def the_workers(tmp_path: Path) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        workers = [Worker(stack, tmp_path) for _ in range(2)]
        for worker in workers:
            assert worker.hear() == "ready"
        yield workers


def until(worker: Worker, expected: Samples) -> Samples:
    """What it says, as soon as it is what is expected: gauges travel with the ticks of the loops, once a second."""
    limit = time.monotonic() + 10
    while True:
        found = worker.scrape()
        if {key: found.get(key) for key in expected} == expected or time.monotonic() > limit:
            assert {key: found.get(key) for key in expected} == expected
            return found
        time.sleep(0.05)


def test_two_workers_give_one_answer_and_keep_what_the_dead_have_counted(workers: list[Worker]) -> None:
    a, b = workers
    a("request", 200, 112)
    b("request", 200, 89)
    b("request", 500, 3)
    a("begin"), b("begin"), b("begin")
    for user in ("ana", "luis"):
        a("saw", user)
    b("saw", "ana")
    a("connect"), b("connect"), b("connect"), b("connect")
    b("statement")
    endpoint = (("endpoint", "/"), ("method", "GET"))
    expected = {
        ("app_requests_total", (*endpoint, ("status", "200"))): 201,
        ("app_requests_total", (*endpoint, ("status", "500"))): 3,
        ("app_request_duration_seconds_count", endpoint): 204,
        ("app_request_duration_seconds_bucket", (*endpoint[:1], ("le", "0.0002"), *endpoint[1:])): 204,
        ("app_response_bytes_total", endpoint): 2040,
        ("app_requests_in_progress", ()): 3,
        ("app_active_users", ()): 3,  # ana was served by both
        ("app_database_queries_total", (("operation", "SELECT"),)): 1,
        ("app_database_pool_connections", (("state", "checked_out"),)): 4,
        ("app_database_pool_connections", (("state", "overflow"),)): 1,
        ("app_database_pool_limit", ()): 24,
        ("app_info", (("environment", "development"), ("version", "1.0.0"))): 1,
    }
    assert until(a, expected) == b.scrape() == a.scrape()
    for worker in workers:
        assert worker.processes == {a.pid, b.pid}
        assert worker.names > {"app_system_memory_bytes", "app_system_disk_bytes", "app_event_loop_lag_seconds_count"}
    b.process.kill()
    b.process.wait()
    expected |= {
        ("app_requests_in_progress", ()): 1,
        ("app_active_users", ()): 2,
        ("app_database_pool_connections", (("state", "checked_out"),)): 1,
        ("app_database_pool_connections", (("state", "overflow"),)): 0,
        ("app_database_pool_limit", ()): 12,
    }
    until(a, expected)
    assert a.processes == {a.pid}


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    program = "from labkit.monitoring import Metrics; Metrics()"
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "none"), "LABKIT_LANG": "en"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert "MonitoringError: PROMETHEUS_MULTIPROC_DIR" in run.stderr and "Create the folder" in run.stderr
