"""Count the calls of one endpoint call, and nothing else.

cProfile cannot: from Python 3.12 on it is one for the whole process, so a second request fails and the
calls of other threads get in, and around an ``async def`` it counts whatever else the loop does meanwhile.
This one hangs on ``sys.setprofile``, which belongs to one thread, and is taken off while the coroutine waits.
"""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache
from time import perf_counter
from types import CodeType, FrameType
from typing import Any

from labkit.profiling._tree import Frame

Hook = Callable[[FrameType, str, Any], None]
_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Calls:
    """A function as it was called along one path of callers; ``own`` in seconds, without what it calls.

    ``key`` is its code, or module and name of what is not written in Python.
    """

    __slots__ = ("calls", "inner", "key", "outer", "own")

    def __init__(self, key: Any, outer: Calls | None) -> None:
        self.key, self.outer, self.inner = key, outer, dict[Any, Calls]()
        self.calls, self.own = 0, 0.0

    @property
    def frame(self) -> Frame:
        """File and function; builtins have no file."""
        code = isinstance(self.key, CodeType)
        return (self.key.co_filename, self.key.co_qualname) if code else ("", ".".join(filter(None, self.key)))

    def path(self) -> Iterator[Calls]:
        """This one, its caller, the caller's caller and so on."""
        here: Calls | None = self
        while here is not None:
            yield here
            here = here.outer


@cache
def _entry(code: CodeType) -> int:
    return next(step.offset for step in dis.get_instructions(code) if step.opname == "RESUME")


def _hook(root: Calls, cost: float) -> tuple[Hook, Callable[[], None]]:
    # Written for speed: the hook runs twice a call. The time since the last event belongs to whoever was
    # running then, so own times add up to the whole even when SQLAlchemy's greenlets jump from one stack
    # to another.
    clock, ending = perf_counter, Tracer.off.__code__
    running, since, open_frames = root, clock(), dict[FrameType, Calls]()

    def resume() -> None:
        nonlocal running, since
        running, since = root, clock()

    def hook(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal running, since
        running.own += clock() - since - cost
        if event == "return":
            ended = open_frames.pop(frame, root)
            running = ended.outer or root
        elif event == "call" or event == "c_call":
            key: Any = frame.f_code if event == "call" else (arg.__module__, arg.__qualname__)
            if key is ending:
                return
            callee = running.inner.get(key)
            if callee is None:
                callee = running.inner[key] = Calls(key, running)
            running = callee
            if event == "c_call":
                callee.calls += 1
            else:
                open_frames[frame] = callee
                # A coroutine that goes on after it waited was not called again.
                if not key.co_flags & _SUSPENDABLE or frame.f_lasti == _entry(key):
                    callee.calls += 1
        else:
            running = open_frames.get(frame, root)
        since = clock()

    return hook, resume


@cache
def _cost() -> float:
    """Seconds that an event costs outside of the hook, where it cannot see them: the least of some trials."""

    def trial() -> float:
        root = Calls(None, None)
        sys.setprofile(_hook(root, 0.0)[0])
        for _ in range(500):
            abs(0)
        sys.setprofile(None)
        return (root.own + sum(one.own for one in root.inner.values())) / 1000

    return min(trial() for _ in range(9))


class Tracer:
    """A probe (see ``_endpoints``) for one call of an endpoint.

    ``waited`` are the seconds while it was off; ``whole`` is False if another profiler was at work in this
    thread: then only ``elapsed`` is right.
    """

    def __init__(self) -> None:
        self._root = Calls(None, None)
        self._hook, self._resume = _hook(self._root, _cost() if sys.getprofile() is None else 0.0)
        self._began, self._paused = perf_counter(), 0.0
        self.waited, self.whole, self._mine = 0.0, True, False

    def on(self) -> None:
        self.waited += perf_counter() - self._paused if self._paused else 0.0
        self._mine = sys.getprofile() is None
        self.whole &= self._mine
        self._resume()
        if self._mine:
            sys.setprofile(self._hook)

    def off(self) -> None:
        if self._mine:
            self.whole &= sys.getprofile() is self._hook
            sys.setprofile(None)
        self._paused = perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds around the call; our own work is left out as far as it can be seen."""
        busy = sum(one.own for one in self.calls())
        return self.waited + busy if self.whole else self._paused - self._began

    def calls(self) -> list[Calls]:
        """Everything called, callers before callees, once the call has ended."""
        found: list[Calls] = []
        for one in self._root.inner.values():  # what drives the coroutine is written in C
            found += [one] if isinstance(one.key, CodeType) else one.inner.values()
        for one in found:
            one.outer = None
        for one in found:
            one.own = max(0.0, one.own)
            found.extend(one.inner.values())
        return found
