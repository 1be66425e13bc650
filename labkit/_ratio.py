"""The ratio of two durations with an exact interval and a verdict.

The median of the pairs' log ratios is given with its order-statistic interval (Conover, *Practical
Nonparametric Statistics*, 3.2: the confidence of the interval between two ranks is an exact binomial sum). It
assumes nothing about the shape of the noise, which on a shared machine is no shape that has a name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from labkit import plots
from labkit._html import Safe, card
from labkit._text import duration, number, say
from labkit.errors import MeasurementError

CONFIDENCE = 0.95
FEWEST = 6  # pairs: with five, no order-statistic interval reaches 95 %
SYMBOLS = {"faster": "▲", "slower": "▼", "equivalent": "=", "inconclusive": "?"}
COLOURS = {"faster": plots.GREEN, "slower": plots.VERMILION, "equivalent": plots.BLUE, "inconclusive": plots.GREY}


@cache
def _rank(n: int, confidence: float) -> int:
    """Largest k with P(Binomial(n, 1/2) < k) <= (1 - confidence) / 2, in exact integers; 0 if none."""
    budget = Fraction(1 - confidence).limit_denominator(10**9) / 2 * 2**n
    tail, term, k = 0, 1, 0
    while tail + term <= budget:
        tail, term, k = tail + term, term * (n - k) // (k + 1), k + 1
    return k


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float, float]:
    """Median of ``values`` with its exact order-statistic interval, as (median, low, high).

    Too few values for the confidence (under 6 for 95 %) give an interval without ends: (median, -inf, inf).

    Raises:
        MeasurementError: if there are no values.
    """
    if not values:
        raise MeasurementError(say("stats.nothing"))
    rank, ordered = _rank(len(values), confidence), sorted(values)
    if rank == 0:
        return median(ordered), -math.inf, math.inf
    return median(ordered), ordered[rank - 1], ordered[-rank]


def percentiles(values: Sequence[float], points: Sequence[float] = (50, 90, 95, 99)) -> dict[str, float]:
    """Percentiles by nearest rank (each is a value that was seen), as ``{"p50": ..., "p90": ...}``.

    Raises:
        MeasurementError: if there are no values.
    """
    if not len(values):
        raise MeasurementError(say("stats.nothing"))
    found = np.percentile(np.asarray(values, dtype=float), list(points), method="inverted_cdf")
    return {f"p{point:g}": float(value) for point, value in zip(points, found, strict=True)}


def times(*ratios: float) -> list[str]:
    """Ratios as text, with the decimals of the first: ``["38", "33", "43"]`` or ``["1,07", "0,98"]``."""
    spec = ",.0f" if ratios[0] >= 10 else ".1f" if ratios[0] >= 2 else ".2f"
    return [number(ratio, spec) if math.isfinite(ratio) else "∞" for ratio in ratios]


@dataclass(frozen=True, slots=True, repr=False)
class Ratio:
    """How many times faster b is than a, with a 95 % interval and a verdict about b.

    Attributes:
        ratio: median of time a / time b over the pairs; ``nan`` if no pair was completed.
        low, high: ends of the interval; 0 and inf when there were fewer than 6 pairs.
        verdict: ``"faster"`` or ``"slower"`` if the whole interval lies beyond the minimum effect,
            ``"equivalent"`` if it lies within it, else ``"inconclusive"``.
        times_a, times_b: seconds, pair by pair.
        minimum_effect: differences up to this fraction do not count.
    """

    ratio: float
    low: float
    high: float
    verdict: str
    times_a: tuple[float, ...] = ()
    times_b: tuple[float, ...] = ()
    minimum_effect: float = 0.05

    @classmethod
    def of(cls, times_a: Sequence[float], times_b: Sequence[float], minimum_effect: float = 0.05) -> Ratio:
        """The ratio of measured pairs; the first of ``times_a`` belongs to the first of ``times_b``."""
        pairs = list(zip(times_a, times_b, strict=False))
        if not pairs:
            return cls(math.nan, 0.0, math.inf, "inconclusive", tuple(times_a), tuple(times_b), minimum_effect)
        middle, low, high = map(math.exp, median_interval([_log_ratio(a, b) for a, b in pairs]))
        effect = 1 + minimum_effect
        if low > effect or high < 1 / effect:
            verdict = "faster" if low > 1 else "slower"
        else:
            verdict = "equivalent" if low >= 1 / effect and high <= effect else "inconclusive"
        return cls(middle, low, high, verdict, tuple(times_a), tuple(times_b), minimum_effect)

    @property
    def pairs(self) -> int:
        """How many pairs the interval stands on."""
        return min(len(self.times_a), len(self.times_b))

    @property
    def says(self) -> str:
        """The verdict as a sentence: "38 veces más rápido (33–43)"."""
        if self.verdict == "inconclusive" and self.pairs < FEWEST:
            seen = f"×{times(self.ratio)[0]}, " if self.pairs else ""
            return say("stats.too_few", seen=seen, pairs=self.pairs, fewest=FEWEST)
        middle, low, high = self.ratio, self.low, self.high
        if self.verdict == "slower":
            middle, low, high = 1 / middle, 1 / high, 1 / low
        shown = dict(zip(("times", "low", "high"), times(middle, low, high), strict=True))
        return say(f"stats.{self.verdict}", percent=100 * self.minimum_effect, **shown)

    @property
    def df(self) -> pd.DataFrame:
        """One row a pair: seconds of a and of b, and their ratio."""
        rows = list(zip(self.times_a, self.times_b, strict=False))
        frame = pd.DataFrame(rows, columns=["a_s", "b_s"])
        return frame.assign(ratio=frame["a_s"] / frame["b_s"].clip(lower=1e-9))

    def plot(self) -> plots.Figure:
        """Every pair's ratio, with the interval of the median."""
        ratios = self.df["ratio"].tolist()

        def draw(ax: Any) -> None:
            scatter(ax, ratios, plots.BLUE, self)
            effect = 1 + self.minimum_effect
            ax.axhspan(1 / effect, effect, color=plots.GREY, alpha=0.15, linewidth=0)

        return plots.figure(draw, title=self.says, alt=say("stats.alt", pairs=self.pairs, says=self.says), data=self.df)

    def __repr__(self) -> str:
        return say("stats.repr", symbol=SYMBOLS[self.verdict], says=self.says, pairs=self.pairs)

    def _repr_html_(self) -> Safe:
        middle = [duration(median(t)) if t else "—" for t in (self.times_a, self.times_b)]
        body = say("stats.medians", a=middle[0], b=middle[1], pairs=self.pairs)
        return card(self.says, body, colour=COLOURS[self.verdict], symbol=SYMBOLS[self.verdict])


def _log_ratio(a: float, b: float) -> float:
    return math.log(max(a, 1e-9) / max(b, 1e-9))  # a coarse clock may say zero


def scatter(ax: Any, ratios: Sequence[float], colours: Sequence[str] | str, judged: Ratio) -> None:
    """Draw the ratio of every pair and, behind them, the interval of their median."""
    ax.axhline(1, color=plots.BLACK, linewidth=1)
    ax.scatter(range(1, len(ratios) + 1), ratios, c=colours, s=34, zorder=3, edgecolor="white", linewidth=0.6)
    if judged.pairs >= FEWEST:
        _, low, high = times(judged.ratio, judged.low, judged.high)
        label = say("stats.interval", low=low, high=high)
        ax.axhspan(judged.low, judged.high, color=plots.BLUE, alpha=0.3, linewidth=0, label=label)
        ax.figure.legend(loc="outside lower right")
    ax.set(xlabel=say("stats.pair_axis"), ylabel=say("stats.ratio_axis"))
    plots.numbers(ax.xaxis)
    plots.numbers(ax.yaxis, log=True)
