"""Several loads side by side: without a cache and with one, or one strategy beside the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labkit import _hits, plots
from labkit._html import Safe, card, table
from labkit._loaded import LoadResult
from labkit._text import duration, number, say
from labkit.errors import MeasurementError

ALIKE = 1.1  # ratio of mean times up to which nothing is called faster


@dataclass(frozen=True, repr=False)
class SideBySide:
    """Loads by the names that they were given, in that order."""

    loads: Mapping[str, LoadResult]

    @property
    def df(self) -> pd.DataFrame:
        """One row a load: requests and answers a second, times in seconds, what the cache said, errors."""
        rows = [
            {
                "name": name,
                "requests": load.requests,
                "per_second": load.per_second,
                "mean_s": _mean(load),
                **{f"{key}_s": value for key, value in load.percentiles.items()},
                "hit_rate": load.hit_rate,
                **{kind.lower(): load.x_cache.get(kind, 0) for kind in _hits.KINDS},
                "saved": load.saved,
                "errors": load.errors,
            }
            for name, load in self.loads.items()
        ]
        return pd.DataFrame(rows).astype({"hit_rate": float})

    def plot(self) -> plots.Figure:
        """Median and 99th percentile of each load, and beside them what share of its answers the cache gave."""
        data, names = self.df, list(self.loads)
        places = range(len(names))
        cached = any(load.x_cache for load in self.loads.values())

        def times(ax: Any) -> None:
            ax.hlines(places, data["p50_s"], data["p99_s"], color=plots.GREY, linewidth=2.5, zorder=1)
            for column, colour, marker in (
                ("p50_s", plots.BLUE, "o"),
                ("mean_s", plots.BLACK, "|"),
                ("p99_s", plots.VERMILION, "D"),
            ):
                label = say("load.mean") if column == "mean_s" else column.removesuffix("_s")
                ax.scatter(data[column], places, color=colour, marker=marker, s=70, zorder=2, label=label)
            ax.set_xlabel(say("load.time_of_answers"))
            plots.durations(ax.xaxis, log=True)
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3)

        def answers(ax: Any) -> None:
            left = np.zeros(len(names))
            for kind in _hits.KINDS:
                width = 100 * (data[kind.lower()] / data["requests"]).to_numpy()
                if width.any():
                    ax.barh(places, width, left=left, color=_hits.COLOURS[kind], height=0.55, label=kind)
                left += width
            if (left < 99.9).any():
                ax.barh(places, 100 - left, left=left, color="#D5D5D5", height=0.55, label=say("load.no_header"))
            ax.set(xlabel=say("load.answers_axis"), xlim=(0, 100))
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=5, columnspacing=1, handlelength=1)

        def draw(axes: Any) -> None:
            for ax, fill in zip(axes if cached else [axes], (times, answers), strict=False):
                fill(ax)
                ax.set_yticks(places, names if fill is times else [])
                ax.set_ylim(len(names) - 0.4, -0.6)
                ax.grid(False, axis="y")

        says = repr(self)
        size = (10.0, 1.9 + 0.5 * len(names))
        alt = say("load.side_alt", says=says)
        return plots.figure(draw, title=says, alt=alt, data=data, size=size, panels=2 if cached else 1)

    def __repr__(self) -> str:
        means = {name: _mean(load) for name, load in self.loads.items()}
        best, worst = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        ratio = means[worst] / means[best]
        key = "load.side_one" if len(means) == 1 else "load.side_alike" if ratio < ALIKE else "load.side_best"
        fast, slow = duration(means[best]), duration(means[worst])
        return say(key, best=best, worst=worst, fast=fast, slow=slow, times=number(ratio, ",.3g"))

    def _repr_html_(self) -> Safe:
        rows = [
            (
                name,
                number(load.per_second, ",.0f"),
                *(duration(seconds) for seconds in (_mean(load), load.percentiles["p50"], load.percentiles["p99"])),
                "–" if load.hit_rate is None else f"{number(100 * load.hit_rate, '.0f')} %",
                number(load.saved),
                number(load.errors),
            )
            for name, load in self.loads.items()
        ]
        header = say("load.side_columns").split("|")
        return card(repr(self), table(header, rows, range(1, len(header))), colour=plots.BLUE, symbol="●")


def side_by_side(loads: Mapping[str, LoadResult]) -> SideBySide:
    """Set loads side by side: ``side_by_side({"sin cache": a, "con cache": b})``.

    They say something of each other only if their traffic was the same (``ids``, ``seed``, ``concurrency``, ``rate``).

    Raises:
        MeasurementError: if there is no load, or something else among them.
    """
    if not isinstance(loads, Mapping) or not loads or not all(isinstance(x, LoadResult) for x in loads.values()):
        raise MeasurementError(say("load.bad_sides", given=repr(loads)[:200]))
    return SideBySide(dict(loads))


def _mean(load: LoadResult) -> float:
    return float(np.mean(load.elapsed))
