"""Fair comparisons of two durations: interleaved pairs, an exact interval, and a verdict that may be open.

A noisy machine slows down whatever runs at the time. Measuring the two things turn by turn, in random order,
makes both suffer alike, and the ratio inside each pair hardly moves.

Measuring goes on until the interval is narrow, never until it is favourable: stopping at the first
significant look would sooner or later find a difference between a thing and itself.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from itertools import count
from numbers import Real
from statistics import median
from typing import Any, TypedDict, Unpack

import pandas as pd

from labkit import plots
from labkit._html import Safe, card
from labkit._ratio import COLOURS, FEWEST, SYMBOLS, Ratio, median_interval, percentiles, scatter, times
from labkit._text import say
from labkit.errors import MeasurementError

__all__ = [
    "COLOURS",
    "SYMBOLS",
    "OneShots",
    "Ratio",
    "compare",
    "compare_async",
    "median_interval",
    "one_shot_spread",
    "percentiles",
    "positive",
    "times",
]

MOST = 5_000  # pairs, so that things of a microsecond end, too
ENOUGH = 20  # pairs before a narrow interval is believed: six that agree to 2 % by chance are no rarity,
ROUGH = 0.1  # six that agree to 10 % or worse, which will do where the ratio is large, say something


class _Options(TypedDict, total=False):
    limit: float
    minimum_effect: float
    precision: float
    seed: int | None
    warm_up: int
    clock: Callable[[], float]


def positive(**values: object) -> None:
    """Raise a MeasurementError that names the first of these values that is not a number above 0."""
    for name, value in values.items():
        if not (isinstance(value, Real) and 0 < float(value) < math.inf):
            raise MeasurementError(say("stats.bad_number", name=name, value=value))


def _experiment(
    limit: float = 15.0,
    minimum_effect: float = 0.05,
    precision: float = 0.02,
    seed: int | None = None,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Generator[bool, float, Ratio]:
    """Yields which to run next (True: a) and is sent the seconds it took: one course for sync and async."""
    positive(limit=limit, minimum_effect=minimum_effect, precision=precision)
    start, coin, look = clock(), random.Random(seed), FEWEST
    a: list[float] = []
    b: list[float] = []

    def seen() -> Ratio:
        # Where time is short, a cold pair is better than none.
        skip = warm_up if min(len(a), len(b)) >= warm_up + FEWEST else 0
        return Ratio.of(a[skip:], b[skip:], minimum_effect)

    first = False
    for pairs in count(1 - warm_up):
        # Each order as often as the other: what runs second may find caches warm.
        began, first = clock(), coin.random() < 0.5 if pairs % 2 else not first
        for which in (first, not first):
            took = yield which
            if took == math.inf:
                return seen()
            (a if which else b).append(took)
            if clock() - start >= limit:
                return seen()
        now = clock()
        if pairs >= min(look, MOST):
            look = math.ceil(pairs * 1.3)  # few looks: each is one more chance to be misled by a lucky streak
            ratio = seen()
            wanted = max(precision, abs(math.log(ratio.ratio)) / 10)
            enough = ENOUGH if wanted < ROUGH else FEWEST
            if pairs >= MOST or (pairs >= enough and math.log(ratio.high / ratio.low) / 2 <= wanted):
                return ratio
        # Another pair like the last one, or at least like most, must fit. What was measured elsewhere (the
        # cold pair of an endpoint) took no time here.
        last, usual = max(now - began, a[-1] + b[-1]), median(a) + median(b)
        if now + min(last, usual) > start + limit:
            return seen()
    raise AssertionError("unreachable")


def compare(
    a: Callable[[], object],
    b: Callable[[], object],
    **options: Unpack[_Options],
) -> Ratio:
    """Run ``a`` and ``b`` turn by turn in random order and say how many times faster ``b`` is.

    Args:
        a, b: called without arguments; what they return is ignored, what they raise goes through.
        limit: seconds, 15 by default; no pair is started that would not end in time, and a verdict not clear
            by then is ``"inconclusive"``.
        minimum_effect: differences up to this fraction count as none; default: 0.05.
        precision: enough when the interval's half width on the log scale is at most this (default: 0.02, which
            is about 2 %), or a tenth of the log ratio, so that "38 times" need not be known to the decimal.
        seed: makes the order within the pairs reproducible.
        warm_up: pairs run first and not counted, unless time allows no others; default: 1.
        clock: seconds; the tests put in a false one.

    Raises:
        MeasurementError: if ``limit``, ``minimum_effect`` or ``precision`` is not a number above 0.
    """
    course, clock = _experiment(**options), options.get("clock", time.perf_counter)
    which = next(course)
    while True:
        began = clock()
        (a if which else b)()
        try:
            which = course.send(clock() - began)
        except StopIteration as end:
            ratio: Ratio = end.value
            return ratio


async def compare_async(
    a: Callable[[], Awaitable[float | None]],
    b: Callable[[], Awaitable[float | None]],
    **options: Unpack[_Options],
) -> Ratio:
    """`compare` for coroutine functions; one that returns a float has measured its own seconds.

    ``inf`` says that it was cut off or failed: nothing is measured after that.
    """
    course, clock = _experiment(**options), options.get("clock", time.perf_counter)
    which = next(course)
    while True:
        began = clock()
        own = await (a if which else b)()
        elapsed = clock() - began
        try:
            which = course.send(own if isinstance(own, float) else elapsed)
        except StopIteration as end:
            ratio: Ratio = end.value
            return ratio


@dataclass(frozen=True, slots=True, repr=False)
class OneShots:
    """Pairs of single runs of one and the same thing: what a one-shot comparison would have "found".

    Attributes:
        against_itself: the same runs judged as `compare` would.
    """

    against_itself: Ratio
    threshold: float = 0.10

    @property
    def ratios(self) -> tuple[float, ...]:
        """First run / second run of each pair."""
        return tuple(self.df["ratio"])

    @property
    def differ(self) -> float:
        """Fraction of the pairs whose two runs differ by more than the threshold."""
        return sum(self._far(ratio) for ratio in self.ratios) / len(self.ratios)

    def _far(self, ratio: float) -> bool:
        return max(ratio, 1 / ratio) > 1 + self.threshold

    @property
    def df(self) -> pd.DataFrame:
        """One row a pair: seconds of both runs, and their ratio."""
        return self.against_itself.df

    def plot(self) -> plots.Figure:
        """Every one-shot ratio; those that differ by more than the threshold stand out."""

        def draw(ax: Any) -> None:
            band = 1 + self.threshold
            ax.axhspan(1 / band, band, color=plots.GREY, alpha=0.15, linewidth=0)
            colours = [plots.VERMILION if self._far(ratio) else plots.BLUE for ratio in self.ratios]
            scatter(ax, self.ratios, colours, self.against_itself)
            ax.set_ylabel(say("stats.one_shot_axis"))

        return plots.figure(draw, title=repr(self), alt=say("stats.one_shot_alt", says=repr(self)), data=self.df)

    def __repr__(self) -> str:
        pairs, percent = len(self.ratios), 100 * self.threshold
        return say("stats.one_shot", differ=round(self.differ * pairs), pairs=pairs, percent=percent)

    def _repr_html_(self) -> Safe:
        return card(repr(self), say("stats.itself", says=self.against_itself.says), colour=plots.BLUE)


def one_shot_spread(
    run: Callable[[], object],
    *,
    pairs: int = 40,
    limit: float = 15.0,
    clock: Callable[[], float] = time.perf_counter,
) -> OneShots:
    """Time ``run`` against itself ``pairs`` times, one run each, as a hasty comparison would.

    Raises:
        MeasurementError: if not even one pair was complete after ``limit`` seconds.
    """
    start, seconds = clock(), list[float]()
    run()
    while len(seconds) < 2 * pairs and clock() - start < limit:
        began = clock()
        run()
        seconds.append(clock() - began)
    if len(seconds) < 2:
        raise MeasurementError(say("stats.too_slow", limit=limit))
    return OneShots(Ratio.of(seconds[0::2], seconds[1::2]))
