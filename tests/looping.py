"""What the tests of the loop share."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from labkit._home import Flight
from labkit._loop import LoopThread
from labkit.errors import AppError

LIMIT = 0.1


class Context:
    """Notes how often it was entered and left."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    @asynccontextmanager
    async def __call__(self, flights: set[Flight]) -> AsyncIterator[None]:
        self.steps.append("in")
        try:
            yield
        finally:
            self.steps.append("out")


@pytest.fixture(name="context")
def the_context() -> Context:
    return Context()


@pytest.fixture(name="loop")
def the_loop(context: Context) -> Iterator[LoopThread]:
    thread = LoopThread(context, limit=2.0)
    yield thread
    with suppress(AppError):
        thread.close()


async def answer() -> int:
    return 42


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
