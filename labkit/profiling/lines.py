"""How often each line of a function ran in one request, and how long it took: line_profiler around an endpoint."""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import CodeType
from typing import Any

import pandas as pd

from labkit import plots
from labkit._html import Safe, card, join
from labkit._text import duration, number, say
from labkit.profiling import _endpoints
from labkit.profiling._source import heat_table, not_run, source_of

# From 3.12 on the other core fails when several threads of the pool are traced at once.
os.environ.setdefault("LINE_PROFILER_CORE", "legacy")
from line_profiler import LineProfiler  # noqa: E402


@dataclass(frozen=True)
class Line:
    """One line of source: ``hits`` says how often it was reached, ``time`` the seconds spent in it with all it calls,
    ``share`` is its part of the function's time."""

    function: str
    line: int
    hits: int
    time: float
    share: float
    source: str


@dataclass(frozen=True)
class LineReport:
    """Lines of the functions named, in one request. What a line waits for in ``await`` is not counted."""

    label: str
    lines: tuple[Line, ...]
    codes: tuple[CodeType, ...] = field(default=(), repr=False)

    @property
    def df(self) -> pd.DataFrame:
        """One row a line; ``time`` in seconds, ``share`` from 0 to 1."""
        return pd.DataFrame([vars(one) for one in self.lines], columns=list(Line.__dataclass_fields__))

    @property
    def hottest(self) -> Line:
        """The line with the most time."""
        return max(self.lines, key=lambda one: one.time)

    def plot(self) -> plots.Figure:
        """The ten most expensive lines as bars."""
        top = sorted(self.lines, key=lambda one: -one.time)[:10]
        names = [f"{one.line}: {one.source.strip()[:60]}" for one in top]
        return plots.figure(
            lambda ax: plots.bars(ax, names, [one.time for one in top], show=duration),
            title=self._says(),
            alt=say("profiling.lines_alt", label=self.label),
            data=self.df,
        )

    def _says(self) -> str:
        hot = self.hottest
        share = number(hot.share, ".0%").replace("%", " %")
        return say("profiling.lines", share=share, function=hot.function, line=str(hot.line))

    def __repr__(self) -> str:
        return f"{self.label}: {self._says()}\n    {self.hottest.source.strip()}"

    def _repr_html_(self) -> Safe:
        head = [say("profiling.hits"), say("profiling.time"), "%"]

        def rows(code: CodeType) -> Any:
            for one in self.lines:
                if one.function == code.co_qualname:
                    cells = (number(one.hits), duration(one.time), number(100 * one.share, ".1f"))
                    yield one.line, cells if one.hits else ("", "", ""), one.share, one.source

        tables = join(heat_table(code, head, rows(code)) for code in self.codes)
        return card(f"{self.label}: {self._says()}", tables, note=say("profiling.lines_note"))


class _Switch:
    """Turns line_profiler on in the thread at hand."""

    def __init__(self, profiler: Any) -> None:
        self.on, self.off = profiler.enable_by_count, profiler.disable_by_count


async def lines_of(functions: Sequence[Callable[..., Any]], make: Callable[[], Awaitable[Any]]) -> LineReport:
    """Measure the lines of ``functions`` while ``make`` sends one request.

    Args:
        functions: those to look at, decorated or not, from files or notebook cells; none: the endpoint reached.
        make: sends the request through FastAPI in this process.

    Raises:
        MeasurementError: if one of them is not written in Python, or none of them ran inside the endpoint.
    """
    profiler, codes = LineProfiler(), dict[Any, CodeType]()

    def add(function: Callable[..., Any]) -> None:
        code, function = _endpoints.code_of(function), inspect.unwrap(function)
        if function not in codes:
            codes[function] = code
            profiler.add_function(function)

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        if not functions:
            add(call)
        return _endpoints.enclose(call, partial(_Switch, profiler))

    try:
        for one in functions:
            add(one)
        with _endpoints.around(wrap):
            reply = await make()
    finally:
        for function, code in codes.items():
            function.__code__ = code  # line_profiler puts a marked copy in its place
    stats, lines = profiler.get_stats(), list[Line]()
    for code in codes.values():
        timings = stats.timings.get((code.co_filename, code.co_firstlineno, code.co_qualname), [])
        spent = {line: (hits, ticks * stats.unit) for line, hits, ticks in timings}
        whole = sum(time for _, time in spent.values()) or 1.0
        for line, source in source_of(code).items():
            hits, time = spent.get(line, (0, 0.0))
            lines.append(Line(code.co_qualname, line, hits, time, time / whole, source))
    if not any(one.hits for one in lines):
        raise not_run(codes.values(), reply)
    return LineReport(getattr(reply, "label", ""), tuple(lines), tuple(codes.values()))
