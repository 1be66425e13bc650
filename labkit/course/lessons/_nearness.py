"""How long a value takes from the database, from Redis, and from this process's memory (lesson 04)."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from labkit import plots
from labkit._html import Safe, card
from labkit._text import duration
from labkit.cache.client import CacheClient, Unavailable
from labkit.cache.near import NearCache
from labkit.course.cards import words
from labkit.errors import MeasurementError
from labkit.lab import Lab

READS, CHANGES, READY = 2_000, 50, 5.0
KEY = "lesson-04:near"


@dataclass(frozen=True, repr=False)
class Nearness:
    """Times of a read, and what a near cache answers after a change by somebody else.

    Attributes:
        df: one row a place: ``place``, ``seconds`` (median of a read).
        redis, near: the two medians in seconds.
        late: seconds between somebody else's change and the first answer that knows of it (median).
        changes, wrong: changes made, and how many were unknown for ever.
    """

    df: pd.DataFrame
    redis: float
    near: float
    late: float
    changes: int
    wrong: int

    def plot(self) -> plots.Figure:
        """The two medians as bars, beside how late a change arrives."""

        def draw(ax: Any) -> None:
            colours = [plots.VERMILION, plots.BLUE, plots.GREY]
            plots.bars(ax, list(self.df["place"]), list(self.df["seconds"]), colours, show=duration)
            plots.durations(ax.xaxis)
            ax.set(xlabel=words("lesson_04.near_axis"))

        title = repr(self)
        return plots.figure(
            draw, title=title, alt=words("lesson_04.near_alt", says=title), data=self.df, size=(9.0, 2.4)
        )

    def __repr__(self) -> str:
        return words("lesson_04.near", times=self.redis / self.near, late=duration(self.late))

    def _repr_html_(self) -> Safe:
        return card(repr(self), plots.frame(self.df), symbol="●")


def near_hits(lab: Lab) -> Nearness:
    """Read one value again and again from Redis and from a near cache; then have somebody else change it.

    Raises:
        MeasurementError: if the near cache does not come into use, for Redis is away or tells of no changes.
    """

    async def work(_: object) -> Nearness:
        url = lab.app.state.redis_url  # type: ignore[attr-defined]
        async with CacheClient(url) as client, CacheClient(url) as other, NearCache(client, prefixes=[KEY]) as near:
            await client.set(KEY, "0" * 1_000)
            try:
                await _within(READY, lambda: near.active, lambda: near.get(KEY))
                await near.get(KEY)
                redis, memory = await _median(client.read), await _median(near.read)
                late = [await _change(other, near, str(number)) for number in range(CHANGES)]
            except Unavailable:
                raise MeasurementError(words("lesson_04.near_away")) from None
            finally:
                await client.delete(KEY)
        known = [seconds for seconds in late if seconds is not None]
        middle = statistics.median(known) if known else READY
        places = [words(f"lesson_04.near_{name}") for name in ("redis", "memory", "late")]
        data = pd.DataFrame({"place": places, "seconds": [redis, memory, middle]})
        return Nearness(data, redis, memory, middle, CHANGES, CHANGES - len(known))

    return lab.run(work, 30.0)


async def _median(read: Callable[[str], Awaitable[object]]) -> float:
    taken = []
    for _ in range(READS):
        start = time.perf_counter()
        await read(KEY)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


async def _change(other: CacheClient, near: NearCache, value: str) -> float | None:
    """Seconds from the other's answer to the first read that gives the new value; None if none does."""
    await near.read(KEY)
    await other.set(KEY, value)
    start = time.perf_counter()
    while await near.get(KEY) != value:
        if time.perf_counter() - start > 1.0:
            return None
        await asyncio.sleep(0)
    return time.perf_counter() - start


async def _within(seconds: float, condition: Callable[[], bool], ask: Callable[[], Awaitable[object]]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise MeasurementError(words("lesson_04.near_away"))
        await ask()
        await asyncio.sleep(0.01)
