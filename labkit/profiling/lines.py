"""How often each line of a function ran in one request and how long it took: line_profiler in the
endpoint."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import CodeType
from typing import Any, ClassVar

import pandas as pd

from labkit import plots
from labkit._text import duration, number, say
from labkit.profiling import _endpoints
from labkit.profiling._source import SourceReport, by_line

# From Python 3.12 on its other core fails when several threads of the pool are traced at once.
os.environ.setdefault("LINE_PROFILER_CORE", "legacy")
from line_profiler import LineProfiler


class LineReport(SourceReport):
    """Lines of the functions named, in one request.

    ``df`` has ``hits``, ``time`` (seconds in the line with all that it calls; waiting in ``await`` is not
    counted) and ``share`` (part of the function's time, from 0 to 1).
    """

    shown: ClassVar = {"time": duration, "share": lambda share: number(share, ".1%")}
    drawn = ("time",)
    axis = staticmethod(plots.durations)
    room = "lines"

    @property
    def heat(self) -> pd.Series[float]:
        """Share of the function's time."""
        return self.df.share

    @property
    def says(self) -> str:
        """The line with the largest share."""
        hot = self.hottest
        share = number(hot.share, ".0%")
        return say("profiling.lines", share=share, function=hot.function, line=str(hot.line))


class _Switch:
    """Turns line_profiler on and off in the thread at hand."""

    def __init__(self, profiler: Any) -> None:
        self.on, self.off = profiler.enable_by_count, profiler.disable_by_count


async def lines_of(functions: Sequence[Callable[..., Any]], make: Callable[[], Awaitable[Any]]) -> LineReport:
    """Measure the lines of ``functions`` while ``make`` sends one request.

    Args:
        functions: those to look at, decorated or not, from files or notebook cells; none: the endpoint
        reached. make: sends the request through FastAPI in this process.

    Raises:
        MeasurementError: if one of them is not written in Python, or none of them ran inside the endpoint.
    """
    profiler, codes = LineProfiler(), dict[Any, CodeType]()

    def add(function: Callable[..., Any]) -> None:
        code, function = _endpoints.code_of(function), _endpoints.function_of(function)
        if codes.setdefault(function, code) is code:
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
            function.__code__ = code  # line_profiler put a marked copy in its place
    stats = profiler.get_stats()
    timings = {key[:2]: {line: rest for line, *rest in rows} for key, rows in stats.timings.items()}

    def measured(code: CodeType, line: int) -> dict[str, float]:
        spent = timings.get((code.co_filename, code.co_firstlineno), {})
        hits, ticks = spent.get(line, (0, 0))
        whole = sum(ticks for _, ticks in spent.values()) or 1
        return {"hits": hits, "time": ticks * stats.unit, "share": ticks / whole}

    df = by_line(codes.values(), reply, measured)
    return LineReport(getattr(reply, "label", ""), df, tuple(codes.values()))
