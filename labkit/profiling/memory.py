"""How much memory each line of a function takes in one request: two witnesses that see different things.

memory_profiler asks the operating system for the size of the whole process before and after each line: it sees
everything, C libraries too, but other threads as well, and nothing when Python reuses memory that it already had.
tracemalloc asks Python's own allocator: exact to the byte, but blind to what libraries allocate by themselves.
Each gets a request of its own. Asking the system costs some 10 µs a line, so a tight loop may be 1,000 times
slower: after ``limit`` seconds the line by line view stops, and the request goes on at its own speed.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from types import CodeType, FrameType
from typing import Any

import memory_profiler
import pandas as pd

from labkit import plots
from labkit._html import Safe, card, join
from labkit._text import number, say
from labkit.profiling import _endpoints
from labkit.profiling._source import heat_table, not_run, source_of

_MIB = 2**20
_DEPTH = 40  # frames that tracemalloc keeps of each allocation, to find the line of ours that led to it


@dataclass(frozen=True)
class MemoryLine:
    """One line of source; sizes in MiB.

    ``increment`` is what the process grew by while the line ran, all its hits together; ``rss`` the largest size
    of the process after it; ``kept`` what Python had allocated through this line and not freed when the function
    returned.
    """

    function: str
    line: int
    hits: int
    increment: float
    rss: float
    kept: float
    source: str


@dataclass(frozen=True)
class MemoryReport:
    """Memory by line in one request.

    Attributes:
        peak: MiB that Python's allocator held at most for the endpoint (tracemalloc).
        cut: whether the time limit ended the line by line view early; ``increment`` then covers what ran before.
    """

    label: str
    lines: tuple[MemoryLine, ...]
    peak: float
    cut: bool = False
    codes: tuple[CodeType, ...] = field(default=(), repr=False)

    @property
    def df(self) -> pd.DataFrame:
        """One row a line; sizes in MiB."""
        return pd.DataFrame([vars(one) for one in self.lines], columns=list(MemoryLine.__dataclass_fields__))

    def plot(self) -> plots.Figure:
        """The ten lines that took most, by both witnesses."""
        top = sorted(self.lines, key=lambda one: -max(one.increment, one.kept))[:10]
        top = sorted((one for one in top if one.hits), key=lambda one: one.line)
        names = [f"{one.line}: {one.source.strip()[:34]}" for one in top]

        def draw(panels: Any) -> None:
            for ax, sizes, key in (
                (panels[0], [max(0.0, one.increment) for one in top], "profiling.increment_axis"),
                (panels[1], [one.kept for one in top], "profiling.kept_axis"),
            ):
                plots.bars(ax, names if ax is panels[0] else [""] * len(top), sizes, show=_mib)
                ax.set_xlabel(say(key))

        alt = say("profiling.memory_alt", label=self.label)
        return plots.figure(
            draw, title=self._says(), alt=alt, data=self.df, size=(11, 1.6 + 0.4 * len(top)), panels=2
        )

    def _says(self) -> str:
        largest = max(self.lines, key=lambda one: max(one.increment, one.kept))
        size = _mib(max(largest.increment, largest.kept))
        return say("profiling.memory", size=size, function=largest.function, line=str(largest.line))

    def __repr__(self) -> str:
        parts = [f"{self.label}: {self._says()}", say("profiling.peak", peak=_mib(self.peak))]
        return "\n".join([*parts, say("profiling.cut")] if self.cut else parts)

    def _repr_html_(self) -> Safe:
        head = [say(f"profiling.{name}") for name in ("hits", "increment", "kept")]
        most = max([0.1, *(max(one.increment, one.kept) for one in self.lines)])

        def rows(code: CodeType) -> Any:
            for one in self.lines:
                if one.function == code.co_qualname:
                    cells = number(one.hits), _mib(one.increment), _mib(one.kept)
                    heat = max(0.0, one.increment, one.kept) / most
                    yield one.line, cells if one.hits else ("", "", ""), heat, one.source

        tables = join(heat_table(code, head, rows(code)) for code in self.codes)
        return card(repr(self), tables, note=say("profiling.memory_note"))


def _mib(size: float) -> str:
    return f"{number(size, ',.1f')} MiB" if size >= 0.05 else f"{number(size * 1024, ',.0f')} KiB"


class _OneFunction(memory_profiler.LineProfiler):  # type: ignore[misc]
    """memory_profiler for one function. It mixes up the lines of several, and it wants a file on disk, which a
    notebook cell has not: so each function gets one of its own, with the code filled in by hand."""

    def __init__(self, code: CodeType) -> None:
        super().__init__(backend="psutil")
        self.code_map[code] = self.seen = {}
        self._original_trace_function = None


class _Watch:
    """Follows the functions named in the thread at hand, and leaves all others alone."""

    def __init__(self, codes: Iterable[CodeType]) -> None:
        self.codes = frozenset(codes)
        self._before: Any = None

    def on(self) -> None:
        self._before = sys.gettrace()
        sys.settrace(self.trace)

    def off(self) -> None:
        sys.settrace(self._before)

    def trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code not in self.codes:
            return None
        self.see(frame, event, arg)
        return self.trace

    def see(self, frame: FrameType, event: str, arg: Any) -> None:
        raise NotImplementedError


class _Growth(_Watch):
    """What the process grows by, line by line, until the deadline."""

    def __init__(self, codes: Iterable[CodeType], deadline: float) -> None:
        super().__init__(codes)
        self.profilers = {code: _OneFunction(code) for code in codes}
        self.deadline, self.cut = deadline, False

    def on(self) -> None:
        if not self.cut:
            super().on()

    def see(self, frame: FrameType, event: str, arg: Any) -> None:
        if monotonic() > self.deadline:
            self.cut = True
            self.off()
        else:
            self.profilers[frame.f_code].trace_memory_usage(frame, event, arg)


class _Kept(_Watch):
    """What Python holds when a function returns and its variables are still alive: the largest such moment."""

    def __init__(self, codes: Iterable[CodeType]) -> None:
        super().__init__(codes)
        self._first, self._most = tracemalloc.get_traced_memory()[0], 0
        self.snapshot: tracemalloc.Snapshot | None = None
        tracemalloc.reset_peak()

    @property
    def peak(self) -> int:
        return tracemalloc.get_traced_memory()[1] - self._first

    def see(self, frame: FrameType, event: str, arg: Any) -> None:
        frame.f_trace_lines = False
        held = tracemalloc.get_traced_memory()[0] - self._first
        if event == "return" and (self.snapshot is None or held > 1.25 * self._most):
            self._most, self.snapshot = held, tracemalloc.take_snapshot()

    def by_line(self) -> dict[tuple[CodeType, int], int]:
        """Bytes by function and line, each allocation charged to the line of each function that led to it."""
        kept: dict[tuple[CodeType, int], int] = {}
        places = {
            (code.co_filename, line): code for code in self.codes for *_, line in code.co_lines() if line
        }
        for group in self.snapshot.statistics("traceback") if self.snapshot else ():
            led = {
                code: frame.lineno
                for frame in group.traceback
                if (code := places.get((frame.filename, frame.lineno))) is not None
            }
            for key in led.items():
                kept[key] = kept.get(key, 0) + group.size
        return kept


async def memory_of(
    functions: Sequence[Callable[..., Any]], make: Callable[[], Awaitable[Any]], *, limit: float = 20.0
) -> MemoryReport:
    """Measure the memory that the lines of ``functions`` take while ``make`` sends a request; it is called twice.

    Args:
        functions: those to look at, decorated or not, from files or notebook cells; none: the endpoint reached.
        make: sends the request through FastAPI in this process.
        limit: seconds of line by line measurement, which slows a tight loop down about 1,000 times.

    Raises:
        MeasurementError: if one of them is not written in Python, or none of them ran inside the endpoint.
    """
    codes = [_endpoints.code_of(one) for one in functions]
    grown, kept = list[_Growth](), list[_Kept]()

    def watch(begin: Callable[[], _Watch], done: Callable[[Any], None]) -> Any:
        def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
            if not functions and (code := _endpoints.code_of(call)) not in codes:
                codes.append(code)
            return _endpoints.enclose(call, begin, done)

        return _endpoints.around(wrap)

    deadline = monotonic() + limit
    with watch(lambda: _Growth(codes, deadline), grown.append):
        reply = await make()
    seen = {code: [one.profilers[code].seen for one in grown if code in one.profilers] for code in codes}
    if not any(lines for parts in seen.values() for lines in parts):
        raise not_run(codes, reply)
    ours, peak = not tracemalloc.is_tracing(), 0
    if ours:
        tracemalloc.start(_DEPTH)
    try:
        with watch(lambda: _Kept(codes), kept.append):
            await make()
        peak = max((one.peak for one in kept), default=0)
    finally:
        if ours:
            tracemalloc.stop()
    held = [one.by_line() for one in kept]
    lines = []
    for code in codes:
        for line, source in source_of(code).items():
            found = [part[line] for part in seen[code] if line in part and line > code.co_firstlineno]
            lines.append(
                MemoryLine(
                    code.co_qualname,
                    line,
                    sum(hits for *_, hits in found),
                    sum(increment for increment, *_ in found),
                    max((rss for _, rss, _ in found), default=0.0),
                    max((part.get((code, line), 0) for part in held), default=0) / _MIB,
                    source,
                )
            )
    label, cut = getattr(reply, "label", ""), any(one.cut for one in grown)
    return MemoryReport(label, tuple(lines), peak / _MIB, cut, tuple(codes))
