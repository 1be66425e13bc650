"""Traffic: many requests at once inside the Lab's loop, and what became of them."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from labkit import plots, stats
from labkit._html import Safe, card
from labkit._text import duration, number, say
from labkit.errors import MeasurementError, RequestError

if TYPE_CHECKING:
    from labkit._client import Client


Ids = Iterable[object] | Callable[[random.Random], object]


def zipf(n: int, s: float = 1.1) -> Callable[[random.Random], int]:
    """Ids that are asked for as on a real site: a few very often, most hardly ever (Zipf's law).

    Id k, of 1 to ``n``, is drawn with a probability proportional to ``1 / k**s``.

    Raises:
        MeasurementError: if ``n`` is not at least 1 or ``s`` is negative.
    """
    if n < 1 or s < 0:
        raise MeasurementError(say("stats.bad_zipf", n=n, s=s))
    ids = range(1, n + 1)
    shares = list(accumulate(k**-s for k in ids))
    return lambda chance: chance.choices(ids, cum_weights=shares)[0]


@dataclass(frozen=True, repr=False)
class LoadResult:
    """What became of the requests of one load.

    Attributes:
        path, method, concurrency: what was asked.
        seconds: from the first request to the last answer.
        started, elapsed: seconds since the start, and seconds each answer took, request by request.
        outcomes: the status of each request, or the name of the error that ended it; ``"200 + error"`` where
            the endpoint raised in the middle of its answer.
        latency_ms: simulated round trip a statement in milliseconds; 0 where no statement ran.
    """

    path: str
    method: str
    concurrency: int
    seconds: float
    started: tuple[float, ...]
    elapsed: tuple[float, ...]
    outcomes: tuple[int | str, ...]
    latency_ms: float = 0.0

    @property
    def requests(self) -> int:
        """How many requests were made."""
        return len(self.elapsed)

    @property
    def per_second(self) -> float:
        """Answers a second, all workers together."""
        return self.requests / self.seconds

    @property
    def statuses(self) -> dict[int | str, int]:
        """How often each status (or error) came, the most frequent first."""
        return dict(Counter(self.outcomes).most_common())

    @property
    def errors(self) -> int:
        """Requests that ended with a status of 500 or more, with an exception, or without an answer."""
        return sum(isinstance(outcome, str) or outcome >= 500 for outcome in self.outcomes)

    @property
    def refused(self) -> int:
        """Requests that were answered, with a status of 400 to 499: what was measured is the refusal."""
        return sum(isinstance(outcome, int) and 400 <= outcome < 500 for outcome in self.outcomes)

    @property
    def percentiles(self) -> dict[str, float]:
        """Seconds: ``{"p50": ..., "p90": ..., "p95": ..., "p99": ...}``."""
        return stats.percentiles(self.elapsed)

    @property
    def df(self) -> pd.DataFrame:
        """One row a request: seconds since the start, seconds it took, status or error."""
        return pd.DataFrame({"started_s": self.started, "elapsed_s": self.elapsed, "outcome": self.outcomes})

    def plot(self) -> plots.Figure:
        """How many of the answers came within which time (the cumulative distribution, logarithmic)."""
        seen = self.percentiles

        def draw(ax: Any) -> None:
            ordered = np.sort(self.elapsed)
            ax.step(ordered, 100 * np.arange(1, len(ordered) + 1) / len(ordered), where="post", color=plots.BLUE)
            for (name, value), colour in zip(
                seen.items(), (plots.GREEN, plots.ORANGE, plots.VERMILION, plots.PURPLE), strict=True
            ):
                ax.plot([value], [float(name[1:])], "o", color=colour, markersize=8, zorder=3)
                ax.axvline(value, color=colour, linewidth=1.2, linestyle=":", label=f"{name} = {duration(value)}")
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
            simulated = "stats.time_axis_simulated" if self.latency_ms else "stats.time_axis"
            ax.set(xlabel=say(simulated, latency=self.latency_ms), ylabel=say("stats.answered_axis"), ylim=(0, 102))
            plots.durations(ax.xaxis, log=True)

        data = pd.DataFrame({"percentile": list(seen), "elapsed_s": list(seen.values())})
        return plots.figure(draw, title=repr(self), alt=say("stats.load_alt", says=repr(self)), data=data)

    def __repr__(self) -> str:
        seen = self.percentiles
        says = say(
            "stats.load",
            requests=self.requests,
            rate=number(self.per_second, ",.0f"),
            p50=duration(seen["p50"]),
            p99=duration(seen["p99"]),
            errors=self.errors,
        )
        return f"{says} · {self._outcomes}" if self.errors or self.refused else says

    @property
    def _outcomes(self) -> str:
        return ", ".join(f"{name}: {number(times)}" for name, times in self.statuses.items())

    def _repr_html_(self) -> Safe:
        times = " · ".join(f"{name} {duration(value)}" for name, value in self.percentiles.items())
        body = say("stats.load_card", times=times, outcomes=self._outcomes, concurrency=self.concurrency)
        note = say("stats.simulated", latency=self.latency_ms) if self.latency_ms else ""
        colour, symbol = (plots.ORANGE, "▲") if self.refused else (plots.GREEN, "●")
        if self.errors:
            colour, symbol = plots.VERMILION, "✗"
        return card(repr(self), body, colour=colour, symbol=symbol, note=note)


async def load(
    client: Client,
    path: str,
    *,
    requests: int = 1000,
    concurrency: int = 10,
    ids: Ids | None = None,
    method: str = "GET",
    seed: int = 0,
    seconds: float = 30.0,
    **options: Any,
) -> LoadResult:
    """Keep ``concurrency`` workers busy, each asking anew as soon as it has its answer (a closed loop).

    A closed loop slows down with the application: when it stalls, fewer requests are sent, and the
    percentiles look better than users arriving on their own would find them.

    Args:
        client: the Lab's, inside its loop.
        path: where to; ``{id}`` in it is filled from ``ids``.
        requests: how many in all, at most.
        concurrency: workers.
        ids: an iterable (repeated when it ends) or a function of a ``random.Random``, such as ``zipf(500)``.
        method: HTTP method.
        seed: makes the ids reproducible.
        seconds: no request but the first is started after that.
        options: of each request, see ``Lab.request``.

    Raises:
        MeasurementError: if a number is not above 0, or ``{id}`` and ``ids`` do not go together.
        RequestError: if there is no such option.
    """
    client.check(options, "requests", "concurrency", "ids", "method", "seed", "seconds")
    stats.positive(requests=requests, concurrency=concurrency, seconds=seconds)
    requests, concurrency = math.ceil(requests), math.ceil(concurrency)
    waiting = iter(_paths(path, ids, requests, random.Random(seed)))
    # This loop competes with what it measures: plain lists of numbers, which the garbage collector passes over.
    started, elapsed, outcomes = list[float](), list[float](), list[int | str]()
    began_at, took, ended_as = started.append, elapsed.append, outcomes.append
    latency = 0.0
    clock, call = time.perf_counter, client.call
    start = clock()
    end = start + seconds

    async def work() -> None:
        nonlocal latency
        for target in waiting:
            began = clock()
            if began > end and started:
                return
            try:
                reply = await call(method, target, **options)
            except RequestError as error:
                began_at(began)
                took(clock() - began)
                ended_as(type(error).__name__)
                continue
            began_at(began)
            took(reply.elapsed)
            broken = reply.error and reply.status < 500  # it raised after it had begun to answer
            ended_as(f"{reply.status} + error" if broken else reply.status)
            if reply.queries:
                latency = client.trip.ms

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, requests)):
            group.create_task(work())
    took_all = clock() - start
    order = np.argsort(started, kind="stable").tolist()
    moments = tuple(started[i] - start for i in order)
    return LoadResult(
        path,
        method,
        concurrency,
        took_all,
        moments,
        tuple(elapsed[i] for i in order),
        tuple(outcomes[i] for i in order),
        latency,
    )


def _paths(path: str, ids: Ids | None, requests: int, chance: random.Random) -> list[str]:
    if ("{id}" in path) != (ids is not None):
        raise MeasurementError(say("stats.bad_ids", path=path))
    if ids is None:
        return [path] * requests
    if callable(ids):
        chosen: list[object] = [ids(chance) for _ in range(requests)]
    else:
        chosen = list(islice(cycle(ids), requests))
    if not chosen:
        raise MeasurementError(say("stats.bad_ids", path=path))
    return [path.replace("{id}", str(each)) for each in chosen]
