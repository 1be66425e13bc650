"""What the check of the profiling decorator needs: output heard, and profilers that are ended in any case."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

CALLS = 5
"""How many calls after a failed one must work."""


class _Ear:
    """Stands before a stream: keeps what one thread writes and hands on the rest.

    A check that hangs in a call that nothing can end leaves its thread behind; the notebook must go on printing.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread, self._kept = stream, threading.get_ident(), io.StringIO()

    def write(self, text: str) -> int:
        mine = threading.get_ident() == self._thread
        return int((self._kept if mine else self._stream).write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def lines(self) -> list[str]:
        return [line for line in self._kept.getvalue().splitlines() if line.strip()]


@contextlib.contextmanager
def heard() -> Iterator[tuple[_Ear, _Ear]]:
    """What this thread prints to standard output and to standard error meanwhile."""
    out, err = _Ear(sys.stdout), _Ear(sys.stderr)
    with contextlib.redirect_stdout(cast(Any, out)), contextlib.redirect_stderr(cast(Any, err)):
        yield out, err


@dataclass
class After:
    """What an exception left behind.

    Attributes:
        arrived: whether it reached the caller.
        failed: how many of the next ``CALLS`` calls failed.
        still_on: whether Python was still profiling.
    """

    arrived: bool = False
    failed: int = 0
    still_on: bool = False
    kept: list[BaseException] = field(default_factory=list)


async def after_an_exception(broken: Callable[..., Any], good: Callable[..., Any]) -> After:
    """Call ``broken``, which raises a LookupError, and then ``good``."""
    after = After()
    try:
        await broken()
    except LookupError as error:
        after.arrived = True
        after.kept.append(error)  # alive, so that the profiler of the failed call is not ended by luck
    after.still_on = is_profiling()
    for _ in range(CALLS):
        try:
            await good()
        except ValueError as error:  # "Another profiling tool is already active"
            after.kept.append(error)
            after.failed += 1
    return after


def is_profiling() -> bool:
    """Whether cProfile is on: a profile function before Python 3.12, a monitoring tool since."""
    if sys.version_info >= (3, 12):
        return sys.monitoring.get_tool(sys.monitoring.PROFILER_ID) is not None
    return sys.getprofile() is not None


@contextlib.contextmanager
def profiling_ended() -> Iterator[None]:
    """Switch off what a faulty decorator left on, before (an earlier cell) and afterwards."""
    _end()
    try:
        yield
    finally:
        _end()


def _end() -> None:
    sys.setprofile(None)
    if sys.version_info >= (3, 12) and is_profiling():
        sys.monitoring.set_events(sys.monitoring.PROFILER_ID, 0)
        sys.monitoring.free_tool_id(sys.monitoring.PROFILER_ID)
