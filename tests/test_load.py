"""load: bounded traffic, honest numbers."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

import labkit._client
from labkit import load as traffic
from labkit.asgi import Reply
from labkit.errors import MeasurementError, RequestError, RequestTimeout
from labkit.faults import RoundTrip
from labkit.lab import Lab
from labkit.load import LoadResult, zipf


class Client:
    """Notes what is asked and how many ask at once."""

    check = staticmethod(labkit._client.Client.check)

    def __init__(self, status: int = 200, error: str = "") -> None:
        self.paths, self.trip = list[str](), RoundTrip(0)
        self.now = self.most = 0
        self.status, self.error, self.options = status, error, dict[str, Any]()

    def caller(self, method: str, **options: Any) -> Any:
        return lambda path, task=None: self.call(method, path, **options)

    async def call(self, method: str, path: str, **options: Any) -> Reply:
        self.options = options
        self.now += 1
        self.most = max(self.most, self.now)
        self.paths.append(f"{method} {path}")
        place = len(self.paths)
        await asyncio.sleep(0)
        self.now -= 1
        if path == "/late":
            raise RequestTimeout("late")
        return Reply(self.status, b"", (), 0.001 * place, error=self.error)


def load(client: Any, path: str = "/x", **options: Any) -> LoadResult:
    return anyio.run(lambda: traffic.load(client, path, **options))


@given(st.integers(1, 60), st.integers(1, 30))
def test_as_many_requests_as_asked_and_never_more_at_once_than_asked(requests: int, concurrency: int) -> None:
    client = Client()
    result = load(client, requests=requests, concurrency=concurrency)
    assert result.requests == len(client.paths) == requests
    assert client.most == min(requests, concurrency)


def test_the_result_gives_percentiles_statuses_and_a_row_a_request() -> None:
    result = load(Client(), requests=100, concurrency=4)
    assert result.percentiles == pytest.approx({"p50": 0.05, "p90": 0.09, "p95": 0.095, "p99": 0.099})
    assert (result.statuses, result.errors) == ({200: 100}, 0)
    assert result.per_second == pytest.approx(100 / result.seconds)
    assert list(result.df.columns) == ["started_s", "elapsed_s", "outcome"] and len(result.df) == 100
    assert result.df["started_s"].is_monotonic_increasing
    assert repr(result).startswith("100 peticiones · ") and "p99 99,0 ms" in repr(result)
    assert "200: 100" in result._repr_html_()
    figure = result.plot()
    assert figure.png().startswith(b"\x89PNG") and len(figure.alt.split()) >= 5
    assert figure.table is not None and figure.table["percentile"].tolist() == ["p50", "p90", "p95", "p99"]


def test_errors_are_counted_and_end_nothing() -> None:
    assert load(Client(status=503), requests=7).errors == 7
    assert load(Client(status=404), requests=7).errors == 0
    broken = load(Client(error="KeyError: 1"), requests=7)
    assert (broken.statuses, broken.errors) == ({"200 + error": 7}, 7), "it raised in the middle of its answer"
    late = load(Client(), "/late", requests=7)
    assert (late.statuses, late.errors) == ({"RequestTimeout": 7}, 7)
    assert "✗" in late._repr_html_() and repr(late).endswith("RequestTimeout: 7")


def test_refusals_are_no_errors_but_seen_at_once() -> None:
    refused = load(Client(status=401), requests=7)
    assert (refused.errors, refused.refused) == (0, 7)
    assert repr(refused).endswith("errores: 0 · 401: 7") and "▲" in refused._repr_html_()
    good = load(Client(), requests=7)
    assert good.refused == 0 and repr(good).endswith("errores: 0") and "●" in good._repr_html_()


def test_the_options_of_a_request_go_with_every_call() -> None:
    client = Client()
    load(client, requests=1, headers={"authorization": "x"}, cookies={"a": "b"})
    assert client.options == {"headers": {"authorization": "x"}, "cookies": {"a": "b"}}
    with pytest.raises(RequestError, match=r"nonsense.*requests, concurrency"):
        load(client, nonsense=1)


def test_one_request_is_enough_for_every_view() -> None:
    result = load(Client(), requests=1)
    assert result.plot().png() and result.requests == 1


def test_ids_fill_the_path_in_turn_by_chance_or_by_popularity() -> None:
    client = Client()
    load(client, "/users/{id}", ids=["a", "b"], requests=5, concurrency=1)
    assert client.paths == [f"GET /users/{each}" for each in "ababa"]
    load(client := Client(), "/users/{id}/x", ids=itertools.count(1), requests=3, concurrency=1, method="DELETE")
    assert client.paths == ["DELETE /users/1/x", "DELETE /users/2/x", "DELETE /users/3/x"]

    def drawn(seed: int) -> list[str]:
        client = Client()
        load(client, "/{id}", ids=lambda chance: chance.randint(1, 10**9), requests=9, concurrency=1, seed=seed)
        return client.paths

    assert drawn(1) == drawn(1) != drawn(2)


def test_zipf_prefers_few_and_knows_no_others() -> None:
    chance = random.Random(1)
    draw = zipf(300)
    seen = Counter(draw(chance) for _ in range(20_000))
    assert set(seen) <= set(range(1, 301))
    expected = 20_000 / sum(k**-1.1 for k in range(1, 301))
    assert seen[1] == pytest.approx(expected, rel=0.1)
    assert seen[10] == pytest.approx(expected * 10**-1.1, rel=0.25)
    assert {zipf(1)(chance) for _ in range(5)} == {1}
    assert len({zipf(4, s=0)(chance) for _ in range(200)}) == 4


@pytest.mark.parametrize("bad", [{"n": 0}, {"n": 5, "s": -1}])
def test_zipf_names_what_it_cannot_do(bad: dict[str, Any]) -> None:
    with pytest.raises(MeasurementError, match=rf"n={bad['n']}"):
        zipf(**bad)


@pytest.mark.parametrize("bad", [{"requests": 0}, {"concurrency": 0}, {"seconds": 0}, {"requests": "x"}])
def test_unusable_numbers_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(MeasurementError, match=rf"{next(iter(bad))}=.*mayor que 0"):
        load(Client(), **bad)


@pytest.mark.parametrize(("path", "ids"), [("/{id}", None), ("/x", [1]), ("/{id}", [])])
def test_a_path_and_its_ids_must_go_together(path: str, ids: Any) -> None:
    with pytest.raises(MeasurementError, match="ids="):
        load(Client(), path, ids=ids)


def test_time_is_bounded_but_one_request_is_always_made() -> None:
    result = load(Client(), requests=10_000, concurrency=3, seconds=1e-9)
    assert 1 <= result.requests <= 3


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    app = FastAPI()

    @app.get("/items/{item}")
    async def item(item: int) -> int:
        await asyncio.sleep(0)
        return 1 // (item % 5)

    with Lab(app) as lab:
        yield lab


def test_inside_a_lab_an_endpoint_that_raises_is_a_500_and_no_end(lab: Lab) -> None:
    result = lab.load("/items/{id}", ids=range(10), requests=50, concurrency=8)
    assert (result.statuses, result.errors) == ({200: 40, 500: 10}, 10)
    assert lab.load("/nothing", requests=3).statuses == {404: 3}
