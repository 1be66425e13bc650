"""What a load tells of a cache: hits and misses, the hit rate, executions saved, Redis' memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anyio
import numpy as np
import pytest
import redis.asyncio
from fastapi import FastAPI, Response

import labkit._client
from labkit import load as traffic
from labkit import settings
from labkit.asgi import Reply
from labkit.errors import MeasurementError, RequestError
from labkit.faults import RoundTrip
from labkit.lab import Lab
from labkit.load import LoadResult, side_by_side


class Client:
    """Says what it is told to say, request by request."""

    check = staticmethod(labkit._client.Client.check)

    def __init__(self, *says: str | None) -> None:
        self.says, self.trip, self.asked = list(says), RoundTrip(0), list[str]()

    def caller(self, method: str, **options: Any) -> Any:
        return lambda path, task=None: self.call(method, path, **options)

    async def call(self, method: str, path: str, **options: Any) -> Reply:
        said = self.says[len(self.asked) % len(self.says)]
        self.asked.append(path)
        await asyncio.sleep(0)
        headers = () if said is None else ((b"a", b"b"), (b"x-cache", said.encode()))
        return Reply(200, b"", headers, 0.001 if said == "HIT" else 0.05)


def load(client: Any, path: Any = "/x", **options: Any) -> LoadResult:
    return anyio.run(lambda: traffic.load(client, path, **options))


def made(caches: list[str | None], elapsed: list[float] | None = None) -> LoadResult:
    """A load of a request a second."""
    times = tuple(elapsed or [0.001 if kind == "HIT" else 0.02 for kind in caches])
    moments = tuple(map(float, range(len(caches))))
    return LoadResult("/x", "GET", 1, float(len(caches)), moments, times, (200,) * len(caches), 0.0, tuple(caches))


def test_what_x_cache_says_is_counted() -> None:
    result = load(Client("MISS", "HIT", "hit", "STALE", "BYPASS", "HIT", None, "HIT"), requests=80, concurrency=1)
    assert result.x_cache == {"HIT": 40, "MISS": 10, "STALE": 10, "BYPASS": 10}
    assert (result.hits, result.misses, result.saved) == (40, 10, 50)
    assert result.hit_rate == pytest.approx(40 / 70), "what says nothing of a cache is not counted"
    assert list(result.df.columns) == ["started_s", "elapsed_s", "outcome", "x_cache"]
    assert result.df["x_cache"].tolist()[:3] == ["MISS", "HIT", "HIT"]
    assert repr(result).endswith("errores: 0 · hit rate 57 %")
    assert "HIT: 40" in result._repr_html_() and "Ejecuciones ahorradas: 50" in result._repr_html_()


def test_without_the_header_nothing_is_said_of_a_cache() -> None:
    result = load(Client(None), requests=20)
    assert (result.caches, result.hits, result.hit_rate, result.saved) == ((), 0, None, 0)
    assert "hit rate" not in repr(result) and "x_cache" not in result.df
    assert result.plot().table["percentile"].tolist() == ["p50", "p90", "p95", "p99"]  # type: ignore[index]
    for view in (result.plot_hit_rate, result.hit_rate_over_time):
        with pytest.raises(MeasurementError, match=r"/x trae X-Cache.*@cached"):
            view()
    with pytest.raises(MeasurementError, match="memoria de Redis"):
        result.plot_memory()


def test_hits_and_misses_are_drawn_apart() -> None:
    figure = made(["MISS"] * 10 + ["HIT"] * 90).plot()
    assert figure.axes[0].get_title(loc="left") == "Un acierto tarda 1,00 ms y un fallo 20,0 ms: 20 veces más"
    assert figure.axes[0].get_xscale() == "log" and figure.png().startswith(b"\x89PNG")
    table = figure.table
    assert table is not None and table["x_cache"].tolist() == ["HIT", "MISS"]
    assert table["median_s"].tolist() == pytest.approx([0.001, 0.02]) and table["requests"].tolist() == [90, 10]


@pytest.mark.parametrize(
    ("caches", "elapsed", "title"),
    [
        (["HIT", "MISS"], [0.01, 0.01], "el cache no ahorra tiempo"),
        (["HIT"], None, "HIT: mediana 1,00 ms"),
        (["BYPASS", "STALE"], None, "STALE: mediana 20,0 ms · BYPASS: mediana 20,0 ms"),
        (["MISS", None], None, "MISS: mediana 20,0 ms · –: mediana 20,0 ms"),
    ],
)
def test_a_title_claims_no_more_than_was_seen(caches: Any, elapsed: Any, title: str) -> None:
    figure = made(caches, elapsed).plot()
    assert title in figure.axes[0].get_title(loc="left") and figure.png() and len(figure.alt.split()) >= 5


def test_the_hit_rate_is_told_window_by_window() -> None:
    result = made(["MISS"] * 50 + ["HIT", "STALE"] * 25 + [None] * 50 + ["HIT"] * 50)
    windows = result.hit_rate_over_time(4)
    assert windows["from_s"].tolist() == [0, 50, 100, 150] and windows["to_s"].tolist() == [50, 100, 150, 200]
    assert windows["requests"].tolist() == [50, 50, 0, 50]
    assert np.allclose(windows["hit_rate"], [0, 0.5, np.nan, 1], equal_nan=True)
    with pytest.raises(MeasurementError, match="windows=0"):
        result.hit_rate_over_time(0)


@pytest.mark.parametrize(
    ("caches", "title"),
    [
        (["MISS"] * 20 + ["HIT"] * 180, "El hit rate sube del 0 % al 100 %"),
        (["HIT"] * 180 + ["MISS"] * 20, "El hit rate baja del 100 % al 0 %"),
        (["HIT", "MISS"] * 100, "El hit rate se mantiene cerca del 50 %"),
        (["HIT"], "El hit rate se mantiene cerca del 100 %"),
    ],
)
def test_the_picture_of_the_hit_rate_says_where_it_goes(caches: Any, title: str) -> None:
    figure = made(caches).plot_hit_rate()
    assert figure.axes[0].get_title(loc="left") == title and figure.png() and figure.table is not None


def test_a_mix_asks_each_path_by_its_weight() -> None:
    result = load(client := Client("HIT"), {"/users/{id}": 3, "/stats": 1}, ids=range(5), requests=400, concurrency=1)
    assert set(client.asked) == {"/stats", *(f"/users/{n}" for n in range(5))}
    assert client.asked.count("/stats") == pytest.approx(100, abs=30)
    assert result.path == "/users/{id} + /stats" and list(result.df.columns)[-1] == "path"
    asked = ["/stats" if path == "/stats" else "/users/{id}" for path in client.asked]
    assert result.df["path"].tolist() == asked
    users = [path for path in client.asked if path != "/stats"]
    assert users[:6] == [f"/users/{n}" for n in (0, 1, 2, 3, 4, 0)]


@pytest.mark.parametrize("bad", [{}, {"/a": 0}, {"/a": -1}, {"/a": float("inf")}, {"/a": True}, {"/a": "much"}])
def test_weights_are_numbers_above_zero(bad: Any) -> None:
    with pytest.raises(MeasurementError, match="peso mayor que 0"):
        load(Client(None), bad)


def test_a_path_is_text_or_a_mix() -> None:
    with pytest.raises(RequestError, match="7"):
        load(Client(None), 7)


def test_loads_stand_side_by_side() -> None:
    plain, cached = made([None, None]), made(["MISS", "HIT", "HIT", "STALE"])
    both = side_by_side({"sin cache": plain, "<con>": cached})
    assert repr(both) == "<con>: 10,5 ms en promedio, 1,9 veces menos que sin cache (20,0 ms)"
    rows = both.df.set_index("name")
    assert rows.loc["<con>", ["hit_rate", "hit", "stale", "miss", "saved"]].tolist() == [0.5, 2, 1, 1, 3]
    assert np.isnan(rows.loc["sin cache", "hit_rate"]) and rows.loc["sin cache", "mean_s"] == pytest.approx(0.02)
    assert "&lt;con&gt;" in both._repr_html_() and "50 %" in both._repr_html_()
    figure = both.plot()
    assert len(figure.axes) == 2 and figure.png() and len(figure.alt.split()) >= 5
    alone = side_by_side({"a": plain})
    assert repr(alone) == "a: 20,0 ms en promedio" and len(alone.plot().axes) == 1
    assert repr(side_by_side({"a": plain, "b": plain})).startswith("Todas tardan casi lo mismo")


@pytest.mark.parametrize("bad", [{}, [], {"a": 1}, None])
def test_only_loads_stand_side_by_side(bad: Any) -> None:
    with pytest.raises(MeasurementError, match="side_by_side"):
        side_by_side(bad)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Its endpoint keeps 20 kB for each id in Redis, or does without where that does not answer."""
    app = FastAPI()
    app.state.redis_url = None

    @app.get("/items/{item}")
    async def item(item: int, response: Response) -> int:
        client = redis.asyncio.Redis.from_url(app.state.redis_url, socket_timeout=0.05, retry=None)
        try:
            seen = await client.get(f"item:{item}")
            response.headers["X-Cache"] = "HIT" if seen else "MISS"
            if not seen:
                await client.set(f"item:{item}", b"x" * 20_000)
        except redis.RedisError:
            response.headers["X-Cache"] = "BYPASS"
        finally:
            await client.aclose()
        return item

    with Lab(app) as lab:
        yield lab


def test_redis_memory_is_sampled_meanwhile(lab: Lab) -> None:
    result = lab.load("/items/{id}", ids=range(100), requests=200, concurrency=4)
    assert result.x_cache == {"HIT": 100, "MISS": 100} and result.hit_rate == 0.5
    moments, used = zip(*result.memory, strict=True)
    assert len(used) >= 2 and moments[0] == 0 and list(moments) == sorted(moments)
    assert used[-1] - used[0] > 75 * 20_000, "a hundred values, less what the connections of the first moment took"
    figure = result.plot_memory()
    assert figure.axes[0].get_title(loc="left").startswith("La memoria de Redis creció")
    assert figure.png() and figure.table is not None and len(figure.table) == len(used)
    assert not any(thread.name == "labkit watch" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("used", "title"),
    [
        ((1_000_000, 2_500_000), "La memoria de Redis creció 1,5 MB, hasta 2,5 MB"),
        ((950_000, 600_000), "La memoria de Redis bajó 350 kB, hasta 600 kB"),
        ((5_000_000, 5_010_000), "La memoria de Redis se mantuvo en 5,01 MB"),
        ((5_000_000,), "La memoria de Redis se mantuvo en 5 MB"),
    ],
)
def test_the_picture_of_the_memory_says_how_it_went(used: tuple[int, ...], title: str) -> None:
    figure = replace(made(["HIT"]), memory=tuple(enumerate(used))).plot_memory()
    assert figure.axes[0].get_title(loc="left") == title and figure.png()


def test_a_redis_that_hangs_holds_up_no_load(lab: Lab) -> None:
    assert lab.redis is not None
    if settings.fake_redis():
        pytest.skip("a false Redis does not freeze")
    lab.redis.freeze()
    try:
        result = lab.load("/items/{id}", ids=range(5), requests=5, concurrency=5)
    finally:
        lab.redis.thaw()
    assert result.x_cache == {"BYPASS": 5} and result.memory == () and result.saved == 0
