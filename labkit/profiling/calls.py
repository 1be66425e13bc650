"""Which functions an endpoint calls, how often, and where the time of a request goes.

Two views, each from a request of its own so that neither distorts the other: a table of every call, with the
columns of cProfile, and a picture, sampled by pyinstrument, which follows ``await``.
"""

from __future__ import annotations

import inspect
import io
import pstats
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
from fastapi import routing
from pyinstrument import Profiler
from starlette import responses

from labkit._frames import cell_number, place
from labkit._html import MONO, Safe, card, join, tag
from labkit._text import duration, say
from labkit.errors import MeasurementError
from labkit.profiling import _endpoints
from labkit.profiling._tracer import Calls, Tracer
from labkit.profiling._tree import AWAIT, Frame, Pictured, Stack, finding, is_border

_FEW = 20  # samples, one a millisecond: fewer make no picture
_CALLER: Frame = routing.__file__, _endpoints.original.__name__
_BODY: Frame = responses.__file__, responses.StreamingResponse.stream_response.__name__


@dataclass(frozen=True)
class Function:
    """One function in a profile.

    ``own`` and ``cumulative`` are seconds of work, without and with what it calls; waiting in ``await`` is in
    neither. ``line`` is where it is defined; builtins have no file and line 0.
    """

    name: str
    file: str
    line: int
    calls: int
    own: float
    cumulative: float


@dataclass(frozen=True)
class Profile(Pictured):
    """Where the time of a request goes.

    Attributes:
        label: the request or the endpoint.
        wall: seconds on the clock. From ``profile_async``: of a whole request. From ``profile_endpoint``: around
            the call, ``await`` included; the profiler's own work is left out as far as it can be seen, which is
            about two thirds of it where functions are small.
        undisturbed: True if ``wall`` was measured with no profiler at work.
        waiting: seconds in which the profiled endpoint waited in ``await``.
        complete: False where another profiler worked in the same thread: then trust ``wall`` alone.
    """

    label: str
    wall: float
    calls: tuple[Calls, ...] = field(default=(), repr=False)
    waiting: float = 0.0
    complete: bool = True
    undisturbed: bool = False
    samples: tuple[Stack, ...] = field(default=(), repr=False)

    @cached_property
    def functions(self) -> tuple[Function, ...]:
        """Every function called by the endpoint, itself included, by cumulative time."""
        below, rows = {one: one.own for one in self.calls}, dict[Any, list[Any]]()
        for one in reversed(self.calls):  # callees before their callers
            name, line = one.frame, getattr(one.key, "co_firstlineno", 0)
            row = rows.setdefault(one.key, [name[1], name[0], line, 0, 0.0, 0.0])
            row[3] += one.calls
            row[4] += one.own
            if all(caller is one or caller.key != one.key for caller in one.path()):  # recursion counts once
                row[5] += below[one]
            if one.outer is not None:
                below[one.outer] += below[one]
        return tuple(sorted((Function(*row) for row in rows.values()), key=lambda one: -one.cumulative))

    @cached_property
    def stacks(self) -> Sequence[Stack]:  # type: ignore[override]
        """What the picture shows: ``wall``, shared out as the samples say or, if they are few, the calls."""
        seen = list(self.samples)
        if self.calls and len(seen) < _FEW:
            seen = [([caller.frame for caller in one.path()][::-1], one.own) for one in self.calls]
            seen.append(([self.calls[0].frame, AWAIT], self.waiting))
        share = self.wall / (sum(seconds for _, seconds in seen) or 1.0)
        return [(stack, share * seconds) for stack, seconds in seen]

    @property
    def df(self) -> pd.DataFrame:
        """The functions as a table; times in seconds."""
        return pd.DataFrame(self.functions, columns=[*Function.__dataclass_fields__])

    def table(self, rows: int = 10, sort: str = "cumulative") -> str:
        """The first functions as cProfile prints them; ``sort`` as in ``pstats`` ("tottime", "ncalls"...)."""
        stats: dict[Any, Any] = {}
        for one in self.functions:
            file = place(one.file) if cell_number(one.file) else Path(one.file).name
            known = (file, one.line, one.name)
            key = known if one.file else ("~", 0, f"<built-in method {one.name}>")
            stats[key] = one.calls, one.calls, one.own, one.cumulative, {}
        printer: Any = pstats.Stats(stream=(text := io.StringIO()))
        printer.stats = stats
        printer.get_top_level_stats()
        printer.sort_stats(sort).print_stats(rows)
        return text.getvalue().strip()

    def __repr__(self) -> str:
        key = "alone" if self.undisturbed else "on" if self.complete else "busy"
        return say(f"profiling.profile_{key}", label=self.label, wall=duration(self.wall), where=finding(self.tree))

    def _repr_html_(self) -> Safe:
        table = tag("pre", self.table(10), f"font:12px {MONO};overflow-x:auto;margin:4px 0")
        picture = self.plot().html(with_table=False)
        return card(repr(self), join([picture, table]), note=say("profiling.profile_note"))


def profile_endpoint(
    func: Callable[..., Any] | None = None, *, on_report: Callable[[Profile], object] | None = None
) -> Any:
    """Decorate an endpoint, ``def`` or ``async def``, so that each of its calls is profiled.

    The signature stays, so FastAPI injects as before. Any number of requests may run at once: each has a
    profile of its own, without the calls of the others. A call that raises is profiled too. Meanwhile a
    call takes several times as long; the times reported leave that out as far as it can be seen.

    Args:
        func: the endpoint; leave it out to pass options.
        on_report: called with each :class:`Profile` (in the thread of the endpoint). The latest one is also
            kept as ``.last`` of the decorated function.

    Raises:
        MeasurementError: if the endpoint is a generator, whose work is done after it was called.
    """
    if func is None:
        return partial(profile_endpoint, on_report=on_report)
    label = getattr(func, "__name__", repr(func))
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise MeasurementError(say("profiling.generator", name=label))

    def done(tracer: Tracer) -> None:
        wrapper.last = _profile(label, tracer)
        if on_report is not None:
            on_report(wrapper.last)

    wrapper: Any = _endpoints.enclose(func, Tracer, done)
    wrapper.last, wrapper.below = None, func
    return wrapper


def _profile(label: str, tracer: Tracer) -> Profile:
    return Profile(label, tracer.elapsed, tuple(tracer.calls()), tracer.waited, tracer.whole)


async def profile_async(make: Callable[[], Awaitable[Any]], *, label: str = "") -> Profile:
    """Profile a request of an application; ``make`` sends it and is called three times, in the
    application's loop.

    The first request fills the table of calls (of the endpoint; what FastAPI does around it is in the
    picture), the second is timed with no profiler at work, the third is sampled for the picture, which shares
    out that time in the proportions of the samples.

    Args:
        make: sends the request through FastAPI in this process.
        label: what to call it; default: the label of what ``make`` returns.
    """
    tracers: list[Tracer] = []
    with _endpoints.around(lambda call: _endpoints.enclose(call, Tracer, tracers.append)):
        reply = await make()
    began = perf_counter()
    with _endpoints.around(lambda call: call):  # without profile_endpoint, where the endpoint has it
        await make()
    wall = perf_counter() - began
    samples, label = await _sampled(make), label or getattr(reply, "label", "")
    seen = _profile(label, tracers[0]) if tracers else Profile(label, wall)
    return replace(seen, wall=wall, undisturbed=True, samples=tuple(samples))


class _Sampler:
    """A probe that samples what runs in a thread of the pool (a plain ``def``, a plain generator that makes the body);
    of what runs in the loop it notes when."""

    def __init__(self, call: Callable[..., Any], loop: int) -> None:
        code = _endpoints.code_of(call)
        self.frame: Frame = (code.co_filename, code.co_qualname)
        self.stacks, self.began, self.ended = list[Stack](), perf_counter(), 0.0
        self._loop, self.pooled, self._profiler = loop, False, Profiler(async_mode="disabled")

    def on(self) -> None:
        self.pooled = threading.get_ident() != self._loop
        if self.pooled:
            self._profiler = Profiler(async_mode="disabled")
            self._profiler.start()

    def off(self) -> None:
        if self.pooled:
            self.stacks += _stacks(self._profiler)
        self.ended = perf_counter()


async def _sampled(make: Callable[[], Awaitable[Any]]) -> list[Stack]:
    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        return _endpoints.enclose(call, lambda: _Sampler(call, loop), seen.append)

    loop = threading.get_ident()
    seen, profiler, began = list[_Sampler](), Profiler(async_mode="enabled"), perf_counter()
    with _endpoints.around(wrap):
        profiler.start()
        try:
            await make()
        finally:
            stacks = _stacks(profiler)
    for sampler in seen:
        if sampler.stacks:  # where the loop's thread saw only an await, put what the pool's thread did
            idle = {_CALLER, _BODY} if sampler.pooled else {_CALLER}
            stacks = [one for one in stacks if idle.isdisjoint(one[0])] + sampler.stacks
        else:
            stacks = list(_placed(stacks, sampler, began))
    return stacks


def _placed(stacks: list[Stack], endpoint: _Sampler, now: float) -> Iterator[Stack]:
    """Put under the endpoint what pyinstrument lost sight of: waits behind a task that a middleware made, and
    SQLAlchemy's greenlets, whose stack does not show who awaits them."""
    awaits: Sequence[Frame] = [endpoint.frame]
    for stack, seconds in stacks:
        now += seconds
        names = [name for _, name in stack]
        if "greenlet_spawn" in names:
            awaits = stack[: names.index("greenlet_spawn") + 1]
        elif not endpoint.began < now < endpoint.ended:
            pass
        elif stack[-1] == AWAIT and is_border(stack[-2]):
            stack = [*awaits, AWAIT]
        elif stack[-1] == AWAIT and _CALLER not in stack:
            stack = [endpoint.frame, AWAIT]
        elif not any(map(is_border, stack)):
            stack = [*awaits, *stack]
        yield stack, seconds


def _stacks(profiler: Profiler) -> list[Stack]:
    def frame(record: str) -> Frame:
        name, file, *_ = (*record.split("\x01")[0].split("\x00"), "")
        return ("" if file == "<built-in>" else file), name

    return [([frame(one) for one in records], seconds) for records, seconds in profiler.stop().frame_records]
