"""Memory by line: sizes are asserted with wide margins, the rest is counted."""

from __future__ import annotations

import asyncio
import linecache
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from labkit.errors import MeasurementError
from labkit.profiling.memory import MemoryReport, memory_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def make_rows(n: int) -> list[bytes]:
    rows = []
    for i in range(n):
        rows.append(bytes(1000 + i))
    return rows


app = FastAPI()


@app.get("/plain")
def plain() -> int:
    block = bytearray(64 * 2**20)
    size = len(block)
    del block
    rows = make_rows(1000)
    return size + len(rows)


@app.get("/waits")
async def waits() -> int:
    first = make_rows(500)
    await asyncio.sleep(0)
    kept = [bytes(100_000) for _ in range(100)]
    return len(first) + len(kept)


async def body(kept: list[bytes]) -> AsyncIterator[bytes]:
    for _ in range(3):
        kept.append(bytes(2**20))
        yield b"."


@app.get("/streams")
async def streams() -> StreamingResponse:
    return StreamingResponse(body([]))


@app.get("/tight")
def tight() -> int:
    total = 0
    for i in range(30_000):
        total += i
    return total


async def memory(path: str, *functions: Callable[..., Any], **options: Any) -> MemoryReport:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:

        async def make() -> SimpleNamespace:
            reply = await http.get(path)
            return SimpleNamespace(label=f"GET {path}", status=reply.status_code)

        return await memory_of(functions, make, **options)


def line_with(report: MemoryReport, text: str) -> Any:
    return report.df[report.df.source.str.contains(text, regex=False)].iloc[0]


async def test_a_block_is_found_where_it_was_made() -> None:
    report = await memory("/plain")
    assert set(report.df.function) == {"plain"}
    assert report.hottest.source.strip() == "block = bytearray(64 * 2**20)"
    assert 50 < report.hottest.increment < 80 and report.peak > 60 and not report.cut
    # What a line led to by calling another function is charged to it; letting go counts against a line.
    assert line_with(report, "bytearray").kept == pytest.approx(64, abs=0.1)
    assert line_with(report, "del block").kept == pytest.approx(-64, abs=0.1)
    assert 1 < line_with(report, "rows = make_rows").kept < 3


async def test_several_functions_do_not_mix_up_their_lines() -> None:
    report = await memory("/plain", plain, make_rows)
    assert set(report.df[report.df.hits > 0].function) == {"plain", "make_rows"}
    # memory_profiler left alone would charge the whole process to the lines around a call.
    assert report.df[report.df.function == "make_rows"].increment.max() < 20
    assert line_with(report, "rows = make_rows").increment < 20
    assert 1 < line_with(report, "rows.append").kept < 3


async def test_a_coroutine_that_waits() -> None:
    report = await memory("/waits")
    assert 8 < line_with(report, "kept = [").kept < 12
    assert line_with(report, "asyncio.sleep").hits == 1  # to wait is not to run again
    assert report.df.increment.max() < 40


async def test_a_streamed_body_is_measured() -> None:
    report = await memory("/streams", body)
    assert report.df.hits.tolist() == [0, 4, 3, 3]
    assert 2.5 < line_with(report, "kept.append").kept < 4 and report.peak > 2.5


async def test_a_tight_loop_is_cut_and_still_answers() -> None:
    report = await memory("/tight", limit=0.05)
    assert report.cut and "Se acabó el tiempo" in repr(report)
    assert 0 < line_with(report, "total += i").hits < 30_000
    assert sys.gettrace() is None


async def test_a_notebook_cell_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    source = "def in_cell():\n    block = [bytes(100_000) for _ in range(100)]\n    return len(block)\n"
    name, space = "/tmp/ipykernel_77/4321.py", dict[str, Any]()
    exec(compile(source, name, "exec"), space)
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    app.get("/cell")(lambda: space["in_cell"]())
    report = await memory("/cell", space["in_cell"])
    assert (report.df.hits > 0).tolist() == [False, True, True]
    assert 8 < line_with(report, "block = [").kept < 12
    assert capsys.readouterr() == ("", "")


async def test_tracemalloc_of_the_user_goes_on() -> None:
    tracemalloc.start()
    try:
        await memory("/waits")
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()
    await memory("/waits")
    assert not tracemalloc.is_tracing() and sys.gettrace() is None


async def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(MeasurementError, match="tight no se ejecutó"):
        await memory("/waits", tight)
    with pytest.raises(MeasurementError, match="GET /none no llegó"):
        await memory("/none")
    assert not tracemalloc.is_tracing()


async def test_views() -> None:
    report = await memory("/waits")
    columns = ["function", "line", "hits", "increment", "rss", "kept", "source"]
    assert list(report.df.columns) == columns
    figure = report.plot()
    assert len({panel.get_xlim() for panel in figure.axes}) == 1, "bars of both panels may be compared"
    assert len(figure.alt.split()) >= 5 and figure.png().startswith(b"\x89PNG")
    for panel in figure.axes:
        assert panel.get_xlabel().endswith("(MiB)") and all(label.get_text() for label in panel.get_xticklabels())
    assert "MiB" in report._repr_html_() and "GET /waits" in repr(report)
