"""load(rate=...): requests are sent at their moments, and what they wait counts."""

from __future__ import annotations

import asyncio
import itertools
import random
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

import labkit._client
from labkit import load as traffic
from labkit._traffic import moments
from labkit.asgi import Reply
from labkit.errors import MeasurementError, RequestError
from labkit.faults import RoundTrip
from labkit.lab import Lab
from labkit.load import LoadResult
from tests.looping import until


class Client:
    """Answers after a while, or blocks the loop; notes how many ask at once."""

    check = staticmethod(labkit._client.Client.check)

    def __init__(self, pause: float = 0.0, block: float = 0.0) -> None:
        self.trip, self.pause, self.block = RoundTrip(0), pause, block
        self.now = self.most = self.calls = 0

    def caller(self, method: str, **options: Any) -> Any:
        return lambda path, task=None: self.call(method, path, **options)

    async def call(self, method: str, path: str, **options: Any) -> Reply:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        start = time.perf_counter()
        if self.block and self.calls == 1:
            time.sleep(self.block)
        else:
            await asyncio.sleep(self.pause)
        self.now -= 1
        return Reply(200, b"", (), time.perf_counter() - start)


def load(client: Any, path: Any = "/x", **options: Any) -> LoadResult:
    return anyio.run(lambda: traffic.load(client, path, **options))


def arrivals() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "labkit arrivals"]


def test_requests_are_due_at_even_moments_and_all_are_sent() -> None:
    result = load(client := Client(), rate=1000, requests=60)
    assert result.requests == client.calls == 60
    assert result.started == pytest.approx([place / 1000 for place in range(60)], abs=1e-6)
    assert result.seconds >= 0.059 and result.rate == 1000 and result.capped == 0
    assert list(result.df.columns) == ["started_s", "elapsed_s", "outcome", "waited_s"]
    assert all(0 <= waited <= elapsed for waited, elapsed in zip(result.waited, result.elapsed, strict=True))
    until(lambda: not arrivals())


def test_who_stalls_is_not_waited_for_and_the_wait_counts() -> None:
    """Of 100 requests due within 0,1 s the first blocks the loop for 0,2: a closed loop would blame only that one."""
    stalled = load(Client(block=0.2), rate=1000, requests=100)
    assert min(stalled.elapsed[1:]) >= 0.1 and stalled.elapsed[1] >= 0.19
    assert stalled.percentiles["p50"] >= 0.1
    closed = load(Client(block=0.2), requests=100, concurrency=1)
    assert closed.percentiles["p95"] < 0.1 and max(closed.elapsed) >= 0.2
    figure = stalled.plot()
    legend = figure.axes[0].get_legend()
    assert legend is not None and figure.png()
    assert [text.get_text() for text in legend.texts][:2] == ["desde el envío real", "desde la llegada prevista"]
    assert "1.000 por segundo" in stalled._repr_html_()


def test_a_cap_is_kept_and_reported() -> None:
    result = load(client := Client(pause=0.02), rate=1000, requests=20, concurrency=2)
    assert (result.requests, client.most) == (20, 2)
    assert result.capped == 18 and "por el límite de 2 a la vez: 18" in repr(result)
    assert "▲" in result._repr_html_()
    assert result.elapsed[-1] >= 9 * 0.02 - 0.02, "nine pairs were ahead of the last, which was due at 0,019"
    assert load(Client(pause=0.02), rate=1000, requests=20).capped == 0


def test_what_was_due_and_never_sent_is_no_success() -> None:
    result = load(client := Client(pause=0.2), rate=1000, requests=500, concurrency=1, seconds=0.05)
    assert client.calls == 1 and result.statuses == {"unsent": 50, 200: 1} and result.errors == 50
    assert min(result.elapsed) >= 0.14, "they waited at least until it was over"


def test_the_number_of_requests_follows_from_rate_and_seconds() -> None:
    assert load(Client(), rate=400, seconds=0.1).requests == 40
    assert load(Client(), rate=2000, seconds=0.01, requests=5).requests == 5
    assert load(Client(), rate=1, seconds=0.001).requests == 1


@given(st.floats(0.1, 1e5), st.integers(1, 50))
def test_even_moments(rate: float, requests: int) -> None:
    found = list(moments(rate, "fixed", requests, random.Random(0)))
    assert found == pytest.approx([place / rate for place in range(requests)])


def test_poissons_moments_are_independent_of_each_other() -> None:
    found = list(moments(50, "poisson", 20_000, random.Random(1)))
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert statistics.mean(gaps) == pytest.approx(0.02, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.02, rel=0.05), "exponential: as wide as its mean"
    assert sum(gap < 0.01 for gap in gaps) / len(gaps) == pytest.approx(0.3935, abs=0.02)
    a, b, c = (load(Client(), rate=2000, requests=9, arrivals="poisson", seed=seed).started for seed in (1, 1, 2))
    assert a == pytest.approx(b, abs=1e-6) and a != pytest.approx(c, abs=1e-6)


@pytest.mark.parametrize("bad", [{"rate": 0}, {"rate": -1}, {"rate": float("nan")}, {"rate": "x"}])
def test_an_unusable_rate_is_named(bad: dict[str, Any]) -> None:
    with pytest.raises(MeasurementError, match=r"rate=.*mayor que 0"):
        load(Client(), **bad)


def test_unusable_arrivals_are_named() -> None:
    with pytest.raises(MeasurementError, match=r"arrivals='bursts'.*fixed, poisson"):
        load(Client(), rate=5, arrivals="bursts")
    with pytest.raises(MeasurementError, match=r"arrivals='poisson'.*rate="):
        load(Client(), arrivals="poisson")
    with pytest.raises(RequestError, match="rate, arrivals"):
        load(Client(), nonsense=1)


def test_a_load_that_is_stopped_sends_no_more() -> None:
    async def main() -> int:
        client: Any = Client(pause=0.01)
        task = asyncio.create_task(traffic.load(client, "/x", rate=500, requests=10_000))
        await asyncio.sleep(0.05)
        assert arrivals()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        sent: int = client.calls
        until(lambda: not arrivals())  # here: the end of the loop would end the thread as well
        await asyncio.sleep(0.05)
        assert client.calls == sent
        return sent

    assert asyncio.run(main()) > 0


def test_what_breaks_the_client_ends_the_load() -> None:
    class Broken(Client):
        async def call(self, method: str, path: str, **options: Any) -> Reply:
            raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        load(Broken(), rate=500, requests=10_000)
    until(lambda: not arrivals())


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    app = FastAPI()

    @app.get("/sync/{item}")
    def sync(item: int) -> int:
        return item

    @app.get("/hangs")
    async def hangs() -> None:
        await asyncio.sleep(60)

    with Lab(app, time_limit=1) as lab:
        yield lab


def test_inside_a_lab_threads_and_time_limits_are_as_ever(lab: Lab) -> None:
    result = lab.load("/sync/{id}", ids=range(50), rate=500, requests=50)
    assert result.statuses == {200: 50}
    late = lab.load("/hangs", rate=500, requests=4)
    assert late.statuses == {"RequestTimeout": 4} and min(late.elapsed) >= 1
    assert lab.get("/sync/1").json == 1
