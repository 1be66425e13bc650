"""How much memory each line of a function takes in one request: two witnesses that see different things.

memory_profiler asks the operating system for the size of the whole process after each line: it sees
everything, C libraries too, but other threads as well, and nothing when Python reuses memory that it
already had. tracemalloc asks Python's own allocator: exact to the byte, but blind to what libraries
allocate by themselves. Each gets a request of its own. Asking the system costs some 10 µs a line, so a
tight loop may be 1,000 times slower: after ``limit`` seconds the line by line view stops, and the request
goes on at its own speed.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from types import CodeType, FrameType
from typing import Any, ClassVar

import memory_profiler
import pandas as pd

from labkit import plots
from labkit._text import number, say
from labkit.profiling import _endpoints
from labkit.profiling._source import SourceReport, by_line

_MIB = 2**20


def _mib(size: float) -> str:
    return f"{number(size, ',.1f')} MiB" if abs(size) >= 0.05 else f"{number(size * 1024, ',.0f')} KiB"


@dataclass(frozen=True, eq=False, repr=False)
class MemoryReport(SourceReport):
    """Memory by line in one request; sizes in MiB.

    ``df`` has ``hits``, ``increment`` (what the process grew by while the line ran, all its hits
    together), ``rss`` (the largest size of the process after it) and ``kept`` (what Python held
    more after the line than before it: negative where it let go).

    Attributes:
        peak: the most that Python's allocator held during the request (tracemalloc), in MiB.
        cut: whether the time limit ended the line by line view: ``increment`` covers what ran before.
    """

    peak: float = 0.0
    cut: bool = False

    shown: ClassVar = {"increment": _mib, "kept": _mib}
    drawn = ("increment", "kept")
    axis = staticmethod(plots.numbers)
    room = "memory"

    @property
    def heat(self) -> pd.Series[float]:
        """The larger of what the witnesses saw, against the largest of all (100 KiB at least)."""
        size: pd.Series[float] = self.df[["increment", "kept"]].max(axis=1)
        return size / max(0.1, float(size.max()))

    @property
    def says(self) -> str:
        """The line that took most, and the peak."""
        hot = self.hottest
        size, peak = _mib(max(hot.increment, hot.kept)), _mib(self.peak)
        key = "profiling.memory_cut" if self.cut else "profiling.memory"
        return say(key, size=size, function=hot.function, line=str(hot.line), peak=peak)


class _Watch:
    """Follows the functions named in the thread at hand, and leaves all others alone."""

    def __init__(self, codes: Iterable[CodeType]) -> None:
        self.codes, self._before = frozenset(codes), sys.gettrace()

    def on(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self._trace)

    def off(self) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code not in self.codes:
            return None
        self.see(frame, event)
        return self._trace

    def see(self, frame: FrameType, event: str) -> None:
        raise NotImplementedError


class _OneFunction(memory_profiler.LineProfiler):  # type: ignore[misc]
    """memory_profiler mixes up the lines of several functions, and wants a file on disk, which a notebook
    cell has not: so each function gets a profiler of its own, with the code filled in by hand."""

    def __init__(self, code: CodeType) -> None:
        super().__init__(backend="psutil")
        self.lines: dict[int, tuple[float, float, int]] = {}
        self.code_map[code] = self.lines
        self._original_trace_function = None


class _Growth(_Watch):
    def __init__(self, codes: Iterable[CodeType], deadline: float) -> None:
        super().__init__(codes)
        self.profilers = {code: _OneFunction(code) for code in self.codes}
        self.hits = Counter[tuple[CodeType, int]]()  # memory_profiler counts each wait of a coroutine as well
        self.deadline, self.cut = deadline, False

    def see(self, frame: FrameType, event: str) -> None:
        self.cut = self.cut or monotonic() > self.deadline
        if self.cut:
            self.off()
        else:
            self.hits[frame.f_code, frame.f_lineno] += event == "line"
            self.profilers[frame.f_code].trace_memory_usage(frame, event, None)


class _Kept(_Watch):
    """What Python's allocator holds more after each line than before it, in bytes."""

    def __init__(self, codes: Iterable[CodeType]) -> None:
        super().__init__(codes)
        self.lines = dict[tuple[CodeType, int], int]()
        self._at = dict[FrameType, tuple[int, int]]()

    def see(self, frame: FrameType, event: str) -> None:
        held = tracemalloc.get_traced_memory()[0]
        if frame in self._at:
            line, before = self._at.pop(frame)
            key = frame.f_code, line
            self.lines[key] = self.lines.get(key, 0) + held - before
        if event != "return":
            self._at[frame] = frame.f_lineno, held


async def memory_of(
    functions: Sequence[Callable[..., Any]], make: Callable[[], Awaitable[Any]], *, limit: float = 20.0
) -> MemoryReport:
    """Measure the memory that the lines of ``functions`` take while ``make`` sends a request; it is called
    twice.

    Args:
        functions: those to look at, decorated or not, from files or notebook cells; none: the endpoint
        reached. make: sends the request through FastAPI in this process.
        limit: seconds of line by line measurement, which slows a tight loop down about 1,000 times.

    Raises:
        MeasurementError: if one of them is not written in Python, or none of them ran inside the endpoint.
    """
    codes = dict.fromkeys(_endpoints.code_of(one) for one in functions)
    deadline = monotonic() + limit
    grown, kept = list[_Growth](), list[_Kept]()

    def growth(call: Callable[..., Any]) -> Callable[..., Any]:
        if not functions:
            codes[_endpoints.code_of(call)] = None
        return _endpoints.enclose(call, lambda: _Growth(codes, deadline), grown.append)

    def keeping(call: Callable[..., Any]) -> Callable[..., Any]:
        return _endpoints.enclose(call, lambda: _Kept(codes), kept.append)

    with _endpoints.around(growth):
        reply = await make()
    ours = not tracemalloc.is_tracing()
    if ours:
        tracemalloc.start()
    try:
        with _endpoints.around(keeping):
            first = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            await make()
            peak = (tracemalloc.get_traced_memory()[1] - first) / _MIB
    finally:
        if ours:
            tracemalloc.stop()

    def measured(code: CodeType, line: int) -> dict[str, float]:
        # On the line of "def" memory_profiler has nothing to compare with yet.
        seen = [one.profilers[code].lines[line] for one in grown if line in one.profilers[code].lines]
        seen = seen if line > code.co_firstlineno else []
        increments, sizes, _ = zip(*seen or [(0.0, 0.0, 0)], strict=True)
        hits = sum(one.hits[code, line] for one in grown)
        held = sum(one.lines.get((code, line), 0) for one in kept) / _MIB
        return {"hits": hits, "increment": sum(increments), "rss": max(sizes), "kept": held}

    df = by_line(codes, reply, measured)
    cut = any(one.cut for one in grown)
    return MemoryReport(getattr(reply, "label", ""), df, tuple(codes), peak, cut)
