"""What the lives of cached pages do to hits and stale answers, counted on replayed traffic (lesson 04)."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd

from labkit import plots
from labkit._html import Safe, card
from labkit.cache.adaptive import AdaptiveTTL
from labkit.course.cards import words
from labkit.errors import CourseError
from labkit.replay import Floats, Traffic, _fixed

ARCHIVE, EVERY, RATE, HOURS = 100, 3600.0, 0.2, 100.0
"""Pages that are asked for rarely; seconds between two changes of each page; requests a second of the front page
and of the others together; hours replayed."""

STALE = 0.02


def visits(seed: int, count: int = 5_000, pages: int = 300, favourites: int = 0) -> list[int]:
    """Ids of pages in the order in which they were visited: few of them often, most hardly ever.

    Args:
        seed: gives other visits.
        count, pages: how many visits, to the pages 1 to ``pages``.
        favourites: gives other favourites.
    """
    shares = np.arange(1, pages + 1) ** -1.1
    ids = np.random.default_rng(favourites).permutation(pages) + 1
    drawn: list[int] = np.random.default_rng(seed).choice(ids, count, p=shares / shares.sum()).tolist()
    return drawn


Choose = Callable[[float, float, float], float]


def chosen(choose: Choose, limited: Callable[[], AbstractContextManager[None]] = nullcontext) -> type[AdaptiveTTL]:
    """An adaptive TTL that learns as labkit's does and has ``choose`` say how long a page lives.

    Args:
        choose: of accesses a second, changes a second and the budget that it raises and lowers: seconds.
        limited: around each call of it.

    Its ``filled`` raises `CourseError` where that is no number.
    """

    class Chosen(AdaptiveTTL):
        def filled(self, key: str, data: bytes) -> float:
            super().filled(key, data)
            known = self._keys[key]
            accesses, changes = self._rates(known)
            with limited():
                life = choose(accesses, changes, self._theta)
            if not isinstance(life, Real) or isinstance(life, bool) or not math.isfinite(life):
                raise CourseError(words("lesson_04.ttl_returned", what=repr(life)[:40]))
            known.ttl = float(life)
            return known.ttl

    return Chosen


@dataclass(frozen=True, repr=False)
class TwoLives:
    """A front page and an archive that change equally often, for each split of the same stale answers among them.

    Attributes:
        df: one row a split: ``ratio`` (life of the front page / life of an archive page), ``front_s``,
            ``archive_s``, and ``hits`` (share of all answers). Everywhere 2 % of the answers are stale.
    """

    df: pd.DataFrame

    @property
    def best(self) -> float:
        """The ratio with most hits."""
        return float(self.df["ratio"].iloc[int(self.df["hits"].argmax())])

    def hits(self, ratio: float) -> float:
        """Share of hits at a ratio."""
        ordered = self.df.sort_values("ratio")
        return float(np.interp(math.log(ratio), np.log(ordered["ratio"]), ordered["hits"]))

    def plot(self) -> plots.Figure:
        """Hits against the ratio of the two lives."""

        def draw(ax: Any) -> None:
            ordered = self.df.sort_values("ratio")
            ax.plot(ordered["ratio"], 100 * ordered["hits"], "o-", color=plots.BLUE, markersize=4)
            marks = ((self.best, plots.GREEN, "D", "best"), (1.0, plots.ORANGE, "s", "same"))
            for ratio, colour, shape, name in (*marks, (10.0, plots.VERMILION, "^", "longer")):
                label = words(f"lesson_04.lives_{name}", hits=100 * self.hits(ratio))
                ax.plot(ratio, 100 * self.hits(ratio), shape, color=colour, markersize=10, label=label, zorder=3)
            ax.set(xlabel=words("lesson_04.lives_axis"), ylabel=words("lesson_04.lives_hits"))
            plots.numbers(ax.xaxis, log=True)
            plots.numbers(ax.yaxis)
            ax.legend(loc="lower left")

        return plots.figure(draw, title=repr(self), alt=words("lesson_04.lives_alt", says=repr(self)), data=self.df)

    def __repr__(self) -> str:
        gain = 100 * (self.hits(self.best) - self.hits(1.0))
        return words("lesson_04.lives", percent=100 * self.best, gain=gain)

    def _repr_html_(self) -> Safe:
        return card(repr(self), plots.frame(self.df), symbol="●")


def two_lives(seed: int = 0) -> TwoLives:
    """Replay a front page that gets as many visits as a hundred others together; all change once an hour on average."""
    rng, end = np.random.default_rng(seed), HOURS * 3600

    def moments(rate: float) -> Floats:
        return np.sort(rng.random(rng.poisson(rate * end))) * end

    front = moments(RATE)
    pages = [moments(RATE / ARCHIVE) for _ in range(ARCHIVE)]
    times, keys = np.concatenate(pages), np.repeat(np.arange(ARCHIVE), [len(page) for page in pages])
    order = np.argsort(times)
    both = (
        Traffic(front, np.zeros(len(front), dtype=np.int64), [moments(1 / EVERY)]),
        Traffic(times[order], keys[order], [moments(1 / EVERY) for _ in pages]),
    )
    lives = np.geomspace(8, 10_000, 20)
    hot, cold = (np.maximum.accumulate([_fixed(traffic, life) for life in lives]).T for traffic in both)
    archive = np.geomspace(3, 10_000, 400)
    rows = []
    for ratio in np.geomspace(0.02, 20, 31):
        stale = (np.interp(archive, lives, cold[0]) + np.interp(ratio * archive, lives, hot[0])) / 2  # as many answers
        life = float(np.interp(STALE, stale, archive))
        hits = (np.interp(life, lives, cold[1]) + np.interp(ratio * life, lives, hot[1])) / 2
        rows.append((ratio, ratio * life, life, hits))
    return TwoLives(pd.DataFrame(rows, columns=["ratio", "front_s", "archive_s", "hits"]))
