"""Lines of functions in a request. Hit counts differ between cores of line_profiler: none is asserted."""

from __future__ import annotations

import asyncio
import linecache
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from labkit.errors import MeasurementError
from labkit.profiling.lines import LineReport, lines_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def noted(func: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return wrapper


def helper(n: int) -> int:
    total = 0
    for i in range(n):
        total += i
    return total


def never() -> None: ...


app = FastAPI()


@app.get("/plain")
@noted
def plain() -> int:
    found = helper(200)
    time.sleep(0.03)
    return found


@app.get("/waits")
async def waits() -> int:
    await asyncio.sleep(0.05)
    time.sleep(0.02)
    return helper(10)


async def lines(path: str, *functions: Callable[..., Any], target: Any = app) -> LineReport:
    transport = httpx.ASGITransport(app=target, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:

        async def make() -> SimpleNamespace:
            reply = await http.get(path)
            return SimpleNamespace(label=f"GET {path}", status=reply.status_code)

        return await lines_of(functions, make)


async def test_without_names_it_is_the_endpoint() -> None:
    report = await lines("/plain")
    assert set(report.df.function) == {"plain"}
    assert report.hottest.source.strip() == "time.sleep(0.03)"
    assert report.hottest.time >= 0.03 and report.df.share.sum() == pytest.approx(1)
    assert list(report.df.columns) == ["function", "line", "hits", "time", "share", "source"]
    assert "plain" in repr(report) and "GET /plain" in repr(report)


async def test_named_functions_decorated_or_not() -> None:
    report = await lines("/plain", plain, helper, helper)
    ran = report.df[report.df.hits > 0]
    assert set(ran.function) == {"plain", "helper"}
    assert len(report.codes) == 2 and not report.df.duplicated(["function", "line"]).any()
    assert ran[ran.source.str.contains("total \\+= i")].hits.item() > 100


async def test_waiting_is_not_counted() -> None:
    report = await lines("/waits")
    assert report.hottest.source.strip() == "time.sleep(0.02)"


async def test_nothing_is_left_behind_and_again_works() -> None:
    fresh = FastAPI()

    @fresh.get("/")
    def endpoint() -> int:
        return helper(3)

    before = endpoint.__code__
    reports = [await lines("/", target=fresh) for _ in range(3)]
    assert endpoint.__code__ is before and sys.gettrace() is None
    assert all(report.df.hits.tolist() == [0, 0, 1] for report in reports)


async def test_forty_requests_in_the_pool_at_once() -> None:
    many, meeting = FastAPI(), threading.Barrier(8, timeout=10)

    @many.get("/")
    def endpoint() -> int:
        meeting.wait()
        return helper(50)

    transport = httpx.ASGITransport(app=many)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:

        async def make() -> list[int]:
            replies = await asyncio.gather(*(http.get("/") for _ in range(40)))
            return [reply.status_code for reply in replies]

        statuses = []

        async def kept() -> None:
            statuses.extend(await make())

        report = await lines_of((helper,), kept)
    assert statuses == [200] * 40
    assert report.df.hits.sum() > 0


async def test_a_notebook_cell_is_shown_with_its_source() -> None:
    source = "def in_cell(n):\n    doubled = n * 2\n    return doubled\n"
    name, space = "/tmp/ipykernel_77/1234.py", dict[str, Any]()
    exec(compile(source, name, "exec"), space)
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    cells = FastAPI()
    cells.get("/cell")(lambda: space["in_cell"](3))
    report = await lines("/cell", space["in_cell"], target=cells)
    assert report.df[report.df.hits > 0].source.str.strip().tolist() == ["doubled = n * 2", "return doubled"]
    del linecache.cache[name]
    again = await lines("/cell", space["in_cell"], target=cells)
    assert again.df[again.df.hits > 0].line.tolist() == [2, 3] and set(again.df.source) == {""}


@pytest.mark.parametrize(
    ("path", "functions", "says"),
    [
        ("/plain", (never,), "never no se ejecutó"),
        ("/none", (), "GET /none no llegó"),
        ("/plain", (len,), "built-in function len"),
        ("/plain", ("plain",), "'plain'"),
    ],
)
async def test_what_cannot_be_measured_is_said(path: str, functions: Any, says: str) -> None:
    with pytest.raises(MeasurementError, match=says):
        await lines(path, *functions)
    assert helper(1) == 0 and sys.gettrace() is None


async def test_html_is_escaped_and_figure_has_alt() -> None:
    tricky = FastAPI()

    @tricky.get("/")
    def endpoint() -> str:
        return "<script>alert(1)</script>"

    report = await lines("/", target=tricky)
    html = report._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and "rgba(213,94,0," in html
    figure = report.plot()
    assert len(figure.alt.split()) >= 5 and figure.table is not None and figure.png().startswith(b"\x89PNG")
    assert {label.get_text().split()[-1] for label in figure.axes[0].get_xticklabels()} <= {"0", "µs", "ms", "s"}
    assert list(figure.table)[2] == "runs" and report.df.columns[2] == "hits", "hits are a cache's in other tables"
