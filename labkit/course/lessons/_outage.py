"""What visitors notice while Redis stands still, request by request (lesson 04)."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import pandas as pd

from labkit import plots
from labkit._html import Safe, card
from labkit.course.cards import words
from labkit.lab import Lab

BEGINS, ENDS, SECONDS = 1.0, 3.0, 4.5
"""Seconds after the first request at which the outage begins and ends, and that it all takes."""

RATE = 20.0
"""Requests a second, whatever becomes of those before."""

WAITED = 0.1
"""Seconds from which on a request is said to have waited: half the time-out of the lesson's client."""


@dataclass(frozen=True, repr=False)
class Outage:
    """What became of the requests before, during and after an outage of Redis.

    Attributes:
        df: one row a request: ``started_s``, ``elapsed_s``, ``outcome`` (status), ``x_cache``.
        begins, ends: of the outage, in seconds since the first request.
    """

    df: pd.DataFrame
    begins: float
    ends: float

    @property
    def during(self) -> pd.DataFrame:
        """The requests sent during the outage."""
        return self.df[self.df["started_s"].between(self.begins, self.ends, inclusive="left")]

    @property
    def waited(self) -> int:
        """How many of those waited for Redis in vain."""
        return int((self.during["elapsed_s"] > WAITED).sum())

    @property
    def failed(self) -> int:
        """How many requests of all did not get status 200."""
        return int((self.df["outcome"] != 200).sum())

    def plot(self) -> plots.Figure:
        """Time of each answer against the moment of its request."""

        def draw(ax: Any) -> None:
            ax.axvspan(self.begins, self.ends, color=plots.GREY, alpha=0.25, label=words("lesson_04.outage_frozen"))
            kinds = {"HIT": (plots.BLUE, "o"), "BYPASS": (plots.ORANGE, "D"), "MISS": (plots.PURPLE, "s")}
            for kind, (colour, shape) in kinds.items():
                part = self.df[(self.df["x_cache"] == kind) & (self.df["outcome"] == 200)]
                if len(part):
                    name = words(f"lesson_04.outage_{kind.lower()}")
                    ax.plot(part["started_s"], part["elapsed_s"], shape, color=colour, markersize=5, label=name)
            if self.failed:
                part = self.df[self.df["outcome"] != 200]
                name = words("lesson_04.outage_failed")
                ax.plot(part["started_s"], part["elapsed_s"], "X", color=plots.VERMILION, markersize=8, label=name)
            ax.set(xlabel=words("lesson_04.outage_time"), ylabel=words("lesson_04.outage_took"))
            plots.durations(ax.yaxis, log=True)
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))

        title = repr(self)
        return plots.figure(draw, title=title, alt=words("lesson_04.outage_alt", says=title), data=self.df)

    def __repr__(self) -> str:
        return words("lesson_04.outage", waited=self.waited, sent=len(self.during), failed=self.failed)

    def _repr_html_(self) -> Safe:
        return card(repr(self), plots.frame(self.df), symbol="●")


def outage(lab: Lab, path: str) -> Outage:
    """Send requests evenly for a few seconds, and freeze the Lab's Redis in the middle of them.

    Args:
        lab: whose Redis is frozen.
        path: of the requests.
    """
    over = threading.Event()

    def break_it() -> None:
        if not over.wait(BEGINS):
            with lab.fault("redis_frozen"):
                over.wait(ENDS - BEGINS)

    thread = threading.Thread(target=break_it, name="lesson outage", daemon=True)
    thread.start()
    try:
        found = lab.load(path, rate=RATE, seconds=SECONDS)
    finally:
        over.set()
        thread.join()
    columns = {"started_s": found.started, "elapsed_s": found.elapsed, "outcome": found.outcomes}
    caches = found.caches or ("",) * found.requests
    return Outage(pd.DataFrame(columns | {"x_cache": caches}), BEGINS, ENDS)
