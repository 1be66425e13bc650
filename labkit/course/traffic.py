"""The standard traffic of the rubric: what a cache is worth, with every wrong answer counted as a miss."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pandas as pd

from labkit import _html, plots
from labkit._text import number
from labkit.course.cards import words
from labkit.course.probe import Endpoint, Outcome, Probe, Read, Write, invalidating
from labkit.lab import Lab
from labkit.load import zipf

IDS, SKEW, REQUESTS, UPDATE_EVERY = 300, 1.1, 2_000, 100
LIMIT = 60.0
"""Seconds for the whole; it takes one or two."""

_COLOURS: dict[Outcome, str] = {
    "hit": plots.GREEN,
    "miss": plots.GREY,
    "stale": plots.ORANGE,
    "foreign": plots.VERMILION,
    "failed": plots.PURPLE,
}


@dataclass(frozen=True, repr=False)
class Traffic:
    """What became of the standard traffic under one decorator.

    Attributes:
        name: what it is called in a table.
        runs: executions of the endpoint.
        updates: users changed meanwhile.
        outcomes: of each request, in order.
    """

    name: str
    runs: int
    updates: int
    outcomes: tuple[Outcome, ...]

    @property
    def requests(self) -> int:
        """How many requests were made."""
        return len(self.outcomes)

    @property
    def hits(self) -> int:
        """Answers that were stored and true."""
        return self.outcomes.count("hit")

    @property
    def stale(self) -> int:
        """Answers older than an update that was finished before."""
        return self.outcomes.count("stale")

    @property
    def foreign(self) -> int:
        """Answers about somebody else."""
        return self.outcomes.count("foreign")

    @property
    def failed(self) -> int:
        """Answers that were none."""
        return self.outcomes.count("failed")

    @property
    def hit_rate(self) -> float:
        """Hits a request, 0 to 1: what is stale, foreign or failed counts as a miss."""
        return self.hits / self.requests

    @property
    def df(self) -> pd.DataFrame:
        """One row: the table of ``Strategies`` for this one."""
        return Strategies((self,)).df

    def plot(self) -> plots.Figure:
        """The hit rate from the first request up to each one."""
        found = list(accumulate(outcome == "hit" for outcome in self.outcomes))

        def draw(axes: Any) -> None:
            places = range(1, self.requests + 1)
            axes.plot(places, [100 * hits / place for place, hits in zip(places, found, strict=True)], color=plots.BLUE)
            axes.set(xlabel=words("traffic.request_axis"), ylabel=words("traffic.rate_axis"), ylim=(0, 102))
            plots.numbers(axes.xaxis)

        return plots.figure(draw, title=repr(self), alt=words("traffic.alt", says=repr(self)), data=self.df)

    def __repr__(self) -> str:
        wrong = self.stale + self.foreign + self.failed
        says = words("traffic.says", rate=number(self.hit_rate, ".1%"), requests=self.requests, runs=self.runs)
        return f"{says} · {words('traffic.wrong', count=wrong)}" if wrong else says

    def _repr_html_(self) -> str:
        return _html.card(repr(self), plots.frame(self.df), symbol="→")


@dataclass(frozen=True, repr=False)
class Strategies:
    """The same traffic under several decorators.

    Attributes:
        results: one for each.
    """

    results: tuple[Traffic, ...]

    @property
    def df(self) -> pd.DataFrame:
        """One row a strategy."""
        columns = ("name", "rate", "runs", *_COLOURS)
        rows = [
            (r.name, number(r.hit_rate, ".1%"), r.runs, *(r.outcomes.count(outcome) for outcome in _COLOURS))
            for r in self.results
        ]
        return pd.DataFrame(rows, columns=[words(f"traffic.{column}") for column in columns])

    def plot(self) -> plots.Figure:
        """What the answers were, one bar a strategy."""
        results = self.results

        def draw(axes: Any) -> None:
            left = [0.0] * len(results)
            for outcome, colour in _COLOURS.items():
                widths = [100 * result.outcomes.count(outcome) / result.requests for result in results]
                if any(widths):
                    axes.barh(range(len(results)), widths, left=left, color=colour, label=words(f"traffic.{outcome}"))
                left = [a + b for a, b in zip(left, widths, strict=True)]
            axes.set_yticks(range(len(results)), [f"{r.name}\n{number(r.hit_rate, '.1%')}" for r in results])
            axes.set(xlabel=words("traffic.share_axis"), xlim=(0, 100), ylim=(len(results) - 0.4, -0.6))
            axes.grid(visible=False, axis="y")
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

        size = (9.0, 1.4 + 0.6 * len(results))
        return plots.figure(draw, title=self._finding, alt=words("traffic.strategies_alt"), data=self.df, size=size)

    @property
    def _finding(self) -> str:
        if len(self.results) < 2:
            return repr(self)
        worst, *_, best = sorted(self.results, key=lambda result: result.hit_rate)
        low, high = (number(result.hit_rate, ".1%") for result in (worst, best))
        return words("traffic.strategies_title", worst=worst.name, low=low, best=best.name, high=high)

    def __repr__(self) -> str:
        return " · ".join(f"{result.name}: {number(result.hit_rate, '.1%')}" for result in self.results)

    def _repr_html_(self) -> str:
        return _html.card(repr(self), plots.frame(self.df), symbol="→")


def standard_traffic(
    lab: Lab,
    decorate: Callable[[Endpoint], Endpoint],
    *,
    writer: Callable[[Read, Write], Write] | None = invalidating,
    name: str = "",
    requests: int = REQUESTS,
    seed: int = 0,
    pause: float = 0.0,
) -> Traffic:
    """Ask for 300 users as on a real site (Zipf, s = 1.1), one after the other; one user changes every 100 requests.

    Args:
        lab, decorate, writer, pause: see ``labkit.course.probe.Probe``.
        name: of the strategy.
        requests: how many.
        seed: of the ids.
    """
    chance = random.Random(seed)
    draw = zipf(IDS, SKEW)

    with Probe(lab, decorate, writer=writer, pause=pause) as probe:

        async def work(client: Any) -> tuple[Outcome, ...]:
            outcomes = []
            for place in range(1, requests + 1):
                outcomes.append((await probe.once(client, draw(chance))).outcome)
                if place % UPDATE_EVERY == 0:
                    await probe.change(client, draw(chance))
            return tuple(outcomes)

        outcomes = lab.run(work, LIMIT)
        return Traffic(name, len(probe.runs), requests // UPDATE_EVERY, outcomes)


def strategies(lab: Lab, decorators: Mapping[str, Callable[[Endpoint], Endpoint]], **options: Any) -> Strategies:
    """The standard traffic under each of these decorators, by name; options as in ``standard_traffic``."""
    return Strategies(tuple(standard_traffic(lab, d, name=name, **options) for name, d in decorators.items()))
