"""Which functions an endpoint calls, how often, and where the time goes.

Two views of the same endpoint, each from a request of its own so that neither distorts the other:

- a **table** of every call (:func:`profile_endpoint`), with the columns of cProfile. cProfile itself cannot make
  it: from Python 3.12 on it is one for the whole process, so that a second request fails and the calls of other
  threads get in; and in ``async def`` it counts whatever else the loop does meanwhile. Ours hangs on
  ``sys.setprofile``, which belongs to one thread, and is off while a coroutine waits.
- a **picture** (:func:`profile_async`), sampled by pyinstrument, which follows ``await``.
"""

from __future__ import annotations

import dis
import inspect
import io
import pstats
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from time import perf_counter
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import pandas as pd
from fastapi import routing
from pyinstrument import Profiler

from labkit import plots
from labkit._frames import is_user_frame, place
from labkit._html import Safe, card, code, join, table
from labkit._text import duration, number, say
from labkit.errors import MeasurementError
from labkit.profiling import _endpoints
from labkit.profiling._tree import AWAIT, BORDER, Frame, Stack, finding, fold

_CALLER: Frame = routing.__file__, _endpoints.original.__name__
_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class _Calls:
    """A function as it was called along one path of callers; ``own`` in seconds, without what it calls."""

    __slots__ = ("calls", "inner", "key", "outer", "own")

    def __init__(self, key: Any, outer: _Calls | None) -> None:
        self.key, self.outer = key, outer
        self.inner: dict[Any, _Calls] = {}
        self.calls, self.own = 0, 0.0

    @property
    def frame(self) -> Frame:
        """File and function; builtins have no file."""
        if isinstance(self.key, CodeType):
            return self.key.co_filename, self.key.co_qualname
        return "", ".".join(filter(None, self.key))

    def callers(self) -> Iterator[_Calls]:
        """Those along the path, the nearest first."""
        here = self.outer
        while here is not None:
            yield here
            here = here.outer


@cache
def _entry(code: CodeType) -> int:
    return next(step.offset for step in dis.get_instructions(code) if step.opname == "RESUME")


def _tracing(root: _Calls, cost: float) -> tuple[Callable[[FrameType, str, Any], None], Callable[[], None]]:
    # Written for speed: the hook runs twice a call. The time since the last event belongs to whoever was running
    # then, so own times add up to the whole even when SQLAlchemy's greenlets jump from one stack to another.
    clock, ending = perf_counter, _Tracer.off.__code__
    running, since = root, clock()
    open_frames: dict[FrameType, _Calls] = {}

    def resume() -> None:
        nonlocal running, since
        running, since = root, clock()

    def hook(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal running, since
        running.own += clock() - since - cost
        if event == "return":
            ended = open_frames.pop(frame, None)
            running = ended.outer or root if ended else root
        elif event == "call":
            code = frame.f_code
            if code is ending:
                return
            callee = running.inner.get(code)
            if callee is None:
                callee = running.inner[code] = _Calls(code, running)
            open_frames[frame] = running = callee
            # A coroutine that goes on after it waited was not called again.
            if not code.co_flags & _SUSPENDABLE or frame.f_lasti == _entry(code):
                callee.calls += 1
        elif event == "c_call":
            name = arg.__module__, arg.__qualname__
            callee = running.inner.get(name)
            if callee is None:
                callee = running.inner[name] = _Calls(name, running)
            running = callee
            callee.calls += 1
        else:
            running = open_frames.get(frame, root)
        since = clock()

    return hook, resume


@cache
def _cost() -> float:
    """Seconds that Python needs to call a hook, which the hook itself cannot see: the least of some trials."""

    def nothing() -> None: ...

    def calls(hook: Callable[[FrameType, str, Any], None] | None) -> float:
        began = perf_counter()
        sys.setprofile(hook)
        for _ in range(400):
            nothing()
        sys.setprofile(None)
        return perf_counter() - began

    def trial() -> float:
        bare = calls(None)
        calls(_tracing(root := _Calls(None, None), 0.0)[0])
        return (root.own + sum(one.own for one in root.inner.values()) - bare) / 800

    return max(0.0, min(trial() for _ in range(7)))


class _Tracer:
    """Counts the calls of one endpoint call and shares the time among them, its own work left out."""

    def __init__(self) -> None:
        self._root = _Calls(None, None)
        self._hook, self._resume = _tracing(self._root, _cost() if sys.getprofile() is None else 0.0)
        self._began = self._paused = perf_counter()
        self._waited, self._whole, self._mine = 0.0, True, False

    def on(self) -> None:
        self._waited += perf_counter() - self._paused
        self._mine = sys.getprofile() is None
        self._whole &= self._mine  # another profiler is at work in this thread: time alone is measured
        self._resume()
        if self._mine:
            sys.setprofile(self._hook)

    def off(self) -> None:
        if self._mine:
            self._whole &= sys.getprofile() is self._hook
            sys.setprofile(None)
        self._paused = perf_counter()

    def profile(self, label: str) -> Profile:
        """What was seen, once the call has ended."""
        calls: list[_Calls] = []
        for one in self._root.inner.values():  # what drives a coroutine and us is written in C
            calls += [one] if isinstance(one.key, CodeType) else one.inner.values()
        for one in calls:
            one.outer = None
        for one in calls:
            calls.extend(one.inner.values())
        wall = self._waited + sum(one.own for one in calls) if self._whole else self._paused - self._began
        return Profile(label, wall, tuple(calls), self._waited, self._whole)


@dataclass(frozen=True)
class Function:
    """One function in a profile.

    ``own`` and ``cumulative`` are seconds of work, without and with what it calls; waiting in ``await`` is in
    neither. ``line`` is where it is defined, 0 for a builtin. ``user`` tells the user's code from libraries.
    """

    name: str
    file: str
    line: int
    calls: int
    own: float
    cumulative: float
    user: bool = False


@dataclass(frozen=True)
class Profile:
    """Where the time of a request goes.

    Attributes:
        label: the request or the endpoint.
        wall: seconds on the clock. From ``profile_endpoint``: around the call, ``await`` included, the profiler's
            own work left out as far as it can be seen. From ``profile_async``: of a whole request without a profiler.
        waiting: of them, seconds in which the endpoint waited in ``await``.
        complete: False where another profiler worked in the same thread: then trust ``wall`` alone.
    """

    label: str
    wall: float
    seen: tuple[_Calls, ...] = field(default=(), repr=False)
    waiting: float = 0.0
    complete: bool = True
    samples: tuple[Stack, ...] = field(default=(), repr=False)

    @cached_property
    def functions(self) -> tuple[Function, ...]:
        """Every function called, the most expensive with its callees first. Worked out when first asked for."""
        within = {one: one.own for one in self.seen}
        rows: dict[Any, list[float]] = {}
        for one in reversed(self.seen):  # callees before their callers
            row = rows.setdefault(one.key, [0, 0.0, 0.0])
            row[0] += one.calls
            row[1] += one.own
            if all(caller.key != one.key for caller in one.callers()):  # recursion counts once
                row[2] += within[one]
            if one.outer is not None:
                within[one.outer] += within[one]
        frames = {one.key: one.frame for one in self.seen}
        made = []
        for key, (calls, own, cumulative) in rows.items():
            (file, name), line = frames[key], getattr(key, "co_firstlineno", 0)
            user = bool(file) and is_user_frame(file)
            made.append(Function(name, file, line, int(calls), own, cumulative, user))
        return tuple(sorted(made, key=lambda one: -one.cumulative))

    @cached_property
    def tree(self) -> plots.Node:
        """Calls as boxes in boxes: your functions by name, each library as one box."""
        stacks = self.samples or [
            ([caller.frame for caller in reversed([one, *one.callers()])], one.own) for one in self.seen
        ]
        if self.seen and not self.samples:
            stacks = [*stacks, ([self.seen[0].frame, AWAIT], self.waiting)]
        return fold(stacks, self.label)

    @property
    def df(self) -> pd.DataFrame:
        """The functions as a table; times in seconds."""
        return pd.DataFrame(
            [vars(one) for one in self.functions], columns=list(Function.__dataclass_fields__)
        )

    def table(self, rows: int = 10, sort: str = "cumulative") -> str:
        """The first ``rows`` functions as cProfile prints them (``sort`` as in ``pstats``: "tottime", "ncalls"...)."""
        stats = {
            (Path(one.file).name or "~", one.line, one.name): (
                one.calls,
                one.calls,
                one.own,
                one.cumulative,
                {},
            )
            for one in self.functions
        }
        text = io.StringIO()
        source: Any = SimpleNamespace(create_stats=lambda: None, stats=stats)
        pstats.Stats(source, stream=text).sort_stats(sort).print_stats(rows)
        return text.getvalue().strip()

    def plot(self) -> plots.Figure:
        """The calls as an icicle: callers above, what they call below, width for time."""
        return plots.icicle(self.tree, finding(self.tree), say("profiling.icicle_alt", label=self.label))

    def __repr__(self) -> str:
        key = "profiling.profile" if self.complete else "profiling.profile_busy"
        return say(key, label=self.label, wall=duration(self.wall), where=finding(self.tree))

    def _repr_html_(self) -> Safe:
        head = [say(f"profiling.{name}") for name in ("function", "calls", "own", "cumulative", "place")]
        rows = [
            (
                code(one.name),
                number(one.calls),
                duration(one.own),
                duration(one.cumulative),
                place(one.file, one.line) if one.user else "",
            )
            for one in self.functions[:10]
        ]
        body = [
            table(head, rows, (1, 2, 3)),
            self.plot().html(with_table=False) if self.tree.children else "",
        ]
        return card(repr(self), join(body), note=say("profiling.profile_note"))


def profile_endpoint(
    func: Callable[..., Any] | None = None, *, on_report: Callable[[Profile], object] | None = None
) -> Any:
    """Decorate an endpoint, ``def`` or ``async def``, so that each of its calls is profiled.

    The signature stays, so FastAPI injects as before. Any number of requests may run at once: each has a profile
    of its own, without the calls of the others. A call that raises is profiled too. Under this profiler a call takes
    several times as long (see the benchmarks); the times reported leave that out.

    Args:
        func: the endpoint; leave it out to pass options.
        on_report: called with each :class:`Profile` (in the thread of the endpoint). The latest one is also kept
            as ``.last`` of the decorated function.

    Raises:
        MeasurementError: if the endpoint is a generator, whose work is done after it was called.
    """
    if func is None:
        return partial(profile_endpoint, on_report=on_report)
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise MeasurementError(say("profiling.generator", name=func.__qualname__))
    label = getattr(func, "__name__", repr(func))

    def done(tracer: _Tracer) -> None:
        wrapper.last = tracer.profile(label)
        if on_report is not None:
            on_report(wrapper.last)

    wrapper: Any = _endpoints.enclose(func, _Tracer, done)
    wrapper.last = None
    return wrapper


async def profile_async(make: Callable[[], Awaitable[Any]], *, label: str = "") -> Profile:
    """Profile one request of an application; ``make`` sends it and is called three times, in the loop of the app.

    The first request fills the table of calls (of the endpoint: what FastAPI does around it is in the picture),
    the second is sampled for the picture, the third is timed with no profiler at work.

    Args:
        make: sends the request through FastAPI in this process.
        label: what to call it; default: the label of what ``make`` returns.

    Raises:
        Exception: whatever ``make`` raises.
    """
    tracers: list[_Tracer] = []
    with _endpoints.around(lambda call: _endpoints.enclose(call, _Tracer, tracers.append)):
        reply = await make()
    samples = await _sampled(make)
    began = perf_counter()
    await make()
    wall = perf_counter() - began
    label = label or getattr(reply, "label", "")
    seen = tracers[0].profile(label) if tracers else Profile(label, 0.0)
    return Profile(label, wall, seen.seen, seen.waiting, seen.complete, samples)


class _Sampler:
    """Samples a plain ``def`` in its thread of the pool; of an ``async def`` notes when it ran, and as what."""

    def __init__(self, call: Callable[..., Any]) -> None:
        endpoint = _endpoints.code_of(call)
        self.head: list[Frame] = [_CALLER, (endpoint.co_filename, endpoint.co_qualname)]
        self.began, self.ended, self.stacks = perf_counter(), 0.0, list[Stack]()
        self._profiler = None if _endpoints.is_async(call) else Profiler(async_mode="disabled")

    def on(self) -> None:
        if self._profiler:
            self._profiler.start()

    def off(self) -> None:
        self.ended = perf_counter()
        for stack, seconds in _stacks(self._profiler) if self._profiler else ():
            inside = next((i for i, (file, _) in enumerate(stack, 1) if file == _endpoints.__file__), 0)
            self.stacks.append(([_CALLER, *stack[inside:]], seconds))


async def _sampled(make: Callable[[], Awaitable[Any]]) -> tuple[Stack, ...]:
    seen: list[_Sampler] = []
    profiler, stacks, began = Profiler(async_mode="enabled"), list[Stack](), perf_counter()
    with _endpoints.around(lambda call: _endpoints.enclose(call, lambda: _Sampler(call), seen.append)):
        profiler.start()
        try:
            await make()
        finally:
            stacks = _stacks(profiler)
    for sampler in seen:
        if sampler.stacks:  # where the loop's thread saw only an await, put what the pool's thread did
            stacks = [one for one in stacks if _CALLER not in one[0]] + sampler.stacks
        else:
            stacks = list(_placed(stacks, sampler, began))
    return tuple(stacks)


def _placed(stacks: list[Stack], sampler: _Sampler, now: float) -> Iterator[Stack]:
    """Put under the endpoint what pyinstrument lost sight of: waits behind a task that a middleware made, and
    SQLAlchemy's greenlets, whose stack does not show who awaits them."""
    caller: Sequence[Frame] = sampler.head
    for stack, seconds in stacks:
        now += seconds
        within = sampler.began <= now - seconds / 2 <= sampler.ended
        names = [function for _, function in stack]
        if "greenlet_spawn" in names:
            caller = stack[: names.index("greenlet_spawn") + 1]
        elif within and stack[-1] == AWAIT and _CALLER not in stack:
            stack = [*sampler.head, AWAIT]
        elif within and not any(BORDER.search(file) for file, _ in stack):
            stack = [*caller, *stack]
        yield stack, seconds


def _stacks(profiler: Profiler) -> list[Stack]:
    def frame(record: str) -> Frame:
        function, file, *_ = (*record.split("\x01")[0].split("\x00"), "")
        return ("", function) if file == "<built-in>" else (file, function)

    return [([frame(one) for one in records], seconds) for records, seconds in profiler.stop().frame_records]
