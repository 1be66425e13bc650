"""What buckets do to a p95 (T54), on the learner's own numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
from prometheus_client import CollectorRegistry, Histogram

from labkit import plots
from labkit._html import Safe, card
from labkit._text import duration, number
from labkit.course.cards import words
from labkit.load import LoadResult
from labkit.monitoring.metrics import BUCKETS
from labkit.monitoring.samples import DURATION, REQUESTS, History, Snapshot, histogram_quantile


@dataclass(frozen=True, repr=False)
class Bucketed:
    """One load as a histogram tells it, with the default buckets and with finer ones.

    Attributes:
        elapsed: seconds of each request.
        per_s: ``rate`` of the requests, from the learner's own counter.
        told: ``histogram_quantile(0.95, ...)`` of the learner's own histogram, in seconds.
        fine: the same with labkit's buckets.
        endpoint: whose requests.
    """

    elapsed: tuple[float, ...]
    per_s: float
    told: float
    default: float
    fine: float
    endpoint: str
    seconds: float

    @property
    def real(self) -> float:
        """The p95 of what was measured, in seconds."""
        return float(pd.Series(self.elapsed).quantile(0.95))

    @property
    def df(self) -> pd.DataFrame:
        """What one would ask Prometheus, and its answer."""
        where, window = f'{{endpoint="{self.endpoint}"}}', f"[{1000 * self.seconds:.0f}ms]"
        rows = [
            (f"rate({REQUESTS}{where}{window})", f"{number(self.per_s, ',.0f')}/s"),
            (f"histogram_quantile(0.95, rate({DURATION}_bucket{where}{window}))", duration(self.told)),
            (words("lesson_03.bucket_default"), duration(self.default)),
            (words("lesson_03.bucket_fine"), duration(self.fine)),
            (words("lesson_03.bucket_real"), duration(self.real)),
        ]
        return pd.DataFrame(rows, columns=[words("lesson_03.column_query"), words("lesson_03.column_answer")])

    def _repr_html_(self) -> Safe:
        return card(words("lesson_03.asked"), plots.frame(self.df), symbol="→")

    def plot(self) -> plots.Figure:
        """The share of requests below each bound, as the buckets know it, against what was measured."""
        sizes = {"title_default": Histogram.DEFAULT_BUCKETS, "title_fine": BUCKETS}
        told = {"title_default": self.default, "title_fine": self.fine}

        def draw(axes: Any) -> None:
            values = sorted(self.elapsed)
            shares = [100 * n / len(values) for n in range(1, len(values) + 1)]
            for ax, name, high in zip(axes, sizes, (1.3 * max(self.default, self.real), 2.5 * self.real), strict=True):
                bounds = [0.0, *(b for b in sizes[name] if b < math.inf)]
                known = [100 * sum(v <= b for v in values) / len(values) for b in bounds]
                ax.step(values, shares, where="post", color=plots.GREY, label=words("lesson_03.bucket_measured"))
                known_by = words("lesson_03.bucket_known")
                ax.plot(bounds, known, "o-", color=plots.BLUE, markersize=5, label=known_by)
                real = words("lesson_03.bucket_p95_real", value=duration(self.real))
                ax.axvline(self.real, color=plots.GREEN, label=real)
                said = words("lesson_03.bucket_p95_told", value=duration(told[name]))
                ax.axvline(told[name], color=plots.VERMILION, linestyle="--", label=said)
                ax.set(xlabel=words("lesson_03.bucket_axis"), xlim=(0, high), ylim=(0, 103))
                ax.set_title(words(f"lesson_03.{name}"), fontsize=11, fontweight="normal")
                plots.durations(ax.xaxis)
                ax.legend(loc="lower right", fontsize=9, frameon=True, facecolor=ax.get_facecolor(), framealpha=1)
            axes[0].set_ylabel(words("lesson_03.bucket_share"))

        title = repr(self)
        alt = words("lesson_03.bucket_alt", says=title)
        return plots.figure(draw, title=title, alt=alt, data=self.df, size=(11.0, 4.0), panels=2)

    def __repr__(self) -> str:
        return words("lesson_03.bucketed", told=duration(self.default), real=duration(self.real))


def buckets(before: Snapshot, after: Snapshot, loaded: LoadResult, endpoint: str) -> Bucketed:
    """What PromQL makes of a load.

    Args:
        before, after: of the learner's registry, around the load.
        loaded: the load.
        endpoint: label of its requests.
    """
    window = after.time - before.time
    history = History(window)
    for snapshot in (before, after):
        history.add(snapshot)
    told = {}
    for name, bounds in (("default", Histogram.DEFAULT_BUCKETS), ("fine", BUCKETS)):
        one = Histogram("seconds", "Seconds.", buckets=bounds, registry=CollectorRegistry())
        for value in loaded.elapsed:
            one.observe(value)
        counts = [
            (float(s.labels["le"]), s.value) for f in one.collect() for s in f.samples if s.name.endswith("_bucket")
        ]
        told[name] = histogram_quantile(0.95, counts)
    return Bucketed(
        loaded.elapsed,
        history.rate(REQUESTS, endpoint=endpoint),
        history.quantile(0.95, endpoint=endpoint),
        told["default"],
        told["fine"],
        endpoint,
        window,
    )
