"""What the tests of the loop share."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from labkit._home import Flight

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


async def answer() -> int:
    return 42


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
