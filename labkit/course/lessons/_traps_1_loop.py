"""Traps of Exercise 1 that lie in the event loop: a database that blocks it, a pool that runs dry while it waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pandas as pd
from fastapi import FastAPI
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import sessionmaker

from labkit import plots
from labkit.blog.engines import make_engine
from labkit.course.cards import words
from labkit.course.checks import Context
from labkit.course.lessons._mounting import PATH, mounted
from labkit.course.trapcard import Found, judged
from labkit.lab import Lab

BEAT = 0.01
"""Seconds between two beats of a loop that is free."""

POOL, MANY = 3, 9
WAIT, USUAL_WAIT = 0.1, 30.0
"""Seconds that the pool waits for a connection: here, and by SQLAlchemy's default."""

Endpoint = Callable[..., Any]


def t08(ctx: Context, trap: Endpoint, cure: Endpoint) -> Found:
    """How often the loop beats while one request asks the database."""
    beats = [_beats(ctx, endpoint) for endpoint in (trap, cure)]
    (count, frozen), (cured, _) = ((len(inside), seconds) for inside, seconds in beats)
    return judged(count, cured, bad=lambda n: n < 5, seconds=frozen, due=int(frozen / BEAT), picture=_picture(beats))


def _beats(ctx: Context, endpoint: Endpoint) -> tuple[list[float], float]:
    """When the loop beat, in seconds since the request was made, and when that ended."""

    async def work(client: Any) -> tuple[list[float], float]:
        found: list[float] = []
        begin = time.perf_counter()
        request = asyncio.ensure_future(client.measured("GET", PATH))
        while not request.done():
            await asyncio.sleep(BEAT)
            found.append(time.perf_counter() - begin)
        await request
        return [beat for beat in found if beat < found[-1] - BEAT / 2], found[-1]

    with _serving(ctx, endpoint, make_engine(ctx.lab.database_url)) as lab:
        return lab.run(work)


@contextmanager
def _serving(ctx: Context, endpoint: Endpoint, engine: Engine) -> Iterator[Lab]:
    """An application with nothing but this endpoint, on an engine of its own that nobody watches."""
    app = FastAPI()
    app.state.session_factory = sessionmaker(engine)
    try:
        with ctx.limited(), mounted(app, endpoint), Lab(app, redis=False) as lab:
            yield lab
    finally:
        engine.dispose()


def _picture(beats: list[tuple[list[float], float]]) -> plots.Figure:
    names = [words("gallery.trap"), words("gallery.cure")]
    colours = [plots.VERMILION, plots.BLUE]

    def draw(ax: Any) -> None:
        for y, ((inside, end), colour) in enumerate(zip(beats, colours, strict=True)):
            ax.plot([0, end], [y, y], color=colour, linewidth=8, alpha=0.25, solid_capstyle="butt")
            ax.plot(inside, [y] * len(inside), "|", color=colour, markersize=16, markeredgewidth=1.5)
        ax.set_yticks(range(2), names)
        ax.set(ylim=(1.6, -0.6))
        ax.set_xlabel(words("lesson_08_1.t08_axis"))
        ax.grid(axis="y", visible=False)
        plots.durations(ax.xaxis)

    counts = [len(inside) for inside, _ in beats]
    return plots.figure(
        draw,
        title=words("lesson_08_1.t08_title", trap=counts[0], cure=counts[1]),
        alt=words("lesson_08_1.t08_alt", trap=counts[0], cure=counts[1]),
        data=pd.DataFrame({"name": names, "count": counts, "seconds": [end for _, end in beats]}),
        size=(9.0, 1.9),
    )


def t21(ctx: Context, trap: Endpoint, cure: Endpoint) -> Found:
    """Requests that fail when each holds a connection while it waits for something else, and the loop with them."""
    (failed, frozen), (cured, _) = (_with_few_connections(ctx, endpoint) for endpoint in (trap, cure))
    usual = frozen / WAIT * USUAL_WAIT
    return judged(failed, cured, bad=lambda n: n > 0, many=MANY, pool=POOL, frozen=frozen, usual=usual)


def _with_few_connections(ctx: Context, endpoint: Endpoint) -> tuple[int, float]:
    """Requests that failed, and the longest time without a beat of the loop."""
    engine = create_engine(ctx.lab.database_url, pool_size=POOL, max_overflow=0, pool_timeout=WAIT)

    async def work(client: Any) -> tuple[int, float]:
        beats = [time.perf_counter()]

        async def beat() -> None:
            while True:
                await asyncio.sleep(BEAT)
                beats.append(time.perf_counter())

        beating = asyncio.ensure_future(beat())
        replies = await asyncio.gather(*(client.call("GET", PATH) for _ in range(MANY)))
        beating.cancel()
        beats.append(time.perf_counter())
        longest = max(after - before for before, after in pairwise(beats))
        return sum(reply.status != 200 for reply in replies), longest

    with _serving(ctx, endpoint, engine) as lab:
        return lab.run(work)
