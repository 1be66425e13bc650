"""What became of the requests of a load: percentiles, statuses, and what the cache said of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from labkit import _hits, plots, stats
from labkit._html import Safe, card
from labkit._text import duration, number, say
from labkit.errors import MeasurementError


@dataclass(frozen=True, repr=False)
class LoadResult:
    """What became of the requests of one load.

    Attributes:
        path, method, concurrency: what was asked.
        seconds: from the first request to the last answer.
        started, elapsed: seconds since the start, and seconds each answer took, request by request; in an open
            loop both count from the moment the request was due.
        outcomes: the status of each request, or the name of the error that ended it; ``"200 + error"`` where
            the endpoint raised in the middle of its answer, ``"unsent"`` where time was over before its turn.
        latency_ms: simulated round trip a statement in milliseconds; 0 where no statement ran.
        caches: what ``X-Cache`` said of each answer (``HIT``, ``MISS``, ``STALE``, ``BYPASS``), None where it
            was absent; empty if it always was.
        rate: requests a second of an open loop, 0 of a closed one.
        waited: seconds that each request of an open loop was sent after it was due; part of ``elapsed``.
        capped: how many of them had to wait for one of the ``concurrency`` before them to end.
        paths: of a mix, the path of each request; else empty.
        memory: seconds since the start, and the bytes that Redis used then.
    """

    path: str
    method: str
    concurrency: int
    seconds: float
    started: tuple[float, ...]
    elapsed: tuple[float, ...]
    outcomes: tuple[int | str, ...]
    latency_ms: float = 0.0
    caches: tuple[str | None, ...] = ()
    rate: float = 0.0
    waited: tuple[float, ...] = ()
    capped: int = 0
    paths: tuple[str, ...] = ()
    memory: tuple[tuple[float, int], ...] = ()

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
    def x_cache(self) -> dict[str, int]:
        """How often ``X-Cache`` said what, the most frequent first: ``{"HIT": 930, "MISS": 70}``."""
        return dict(Counter(filter(None, self.caches)).most_common())

    @property
    def hits(self) -> int:
        """Answers that came fresh from the cache."""
        return self.x_cache.get("HIT", 0)

    @property
    def misses(self) -> int:
        """Answers for which the endpoint ran because the cache had none."""
        return self.x_cache.get("MISS", 0)

    @property
    def hit_rate(self) -> float | None:
        """Hits among the answers that carry ``X-Cache``, 0 to 1; None if none does. STALE is no hit, as BYPASS."""
        return self.hits / total if (total := sum(self.x_cache.values())) else None

    @property
    def saved(self) -> int:
        """Executions saved: answers from the cache, fresh or stale, for which nobody waited for the endpoint."""
        return self.hits + self.x_cache.get("STALE", 0)

    def hit_rate_over_time(self, windows: int = 20) -> pd.DataFrame:
        """The hit rate in windows of equal length: ``from_s``, ``to_s``, ``requests``, ``hit_rate`` (NaN if none).

        Raises:
            MeasurementError: if no answer carried ``X-Cache``, or ``windows`` is not above 0.
        """
        self._need_cache()
        stats.positive(windows=windows)
        edges = np.linspace(0.0, self.seconds, int(windows) + 1)
        seen = np.array([kind is not None for kind in self.caches])
        moments, hit = np.array(self.started)[seen], np.array(self.caches)[seen] == "HIT"
        counts, hits = np.histogram(moments, edges)[0], np.histogram(moments[hit], edges)[0]
        rates = np.divide(hits, counts, out=np.full(len(counts), np.nan), where=counts > 0)
        return pd.DataFrame({"from_s": edges[:-1], "to_s": edges[1:], "requests": counts, "hit_rate": rates})

    @property
    def df(self) -> pd.DataFrame:
        """One row a request: seconds since the start, seconds it took, status or error.

        With ``x_cache``, ``waited_s`` and ``path`` where the load had a cache, an open loop, a mix.
        """
        columns = {"started_s": self.started, "elapsed_s": self.elapsed, "outcome": self.outcomes}
        more = {"x_cache": self.caches, "waited_s": self.waited, "path": self.paths}
        return pd.DataFrame(columns | {name: values for name, values in more.items() if values})

    def plot(self) -> plots.Figure:
        """How long the answers took: with ``X-Cache`` hits beside misses, else the cumulative distribution."""
        if self.caches:
            return _hits.distribution(self._by_kind, self.latency_ms)
        seen = self.percentiles

        def draw(ax: Any) -> None:
            shares = 100 * np.arange(1, self.requests + 1) / self.requests
            if self.waited:
                sent = np.sort(np.subtract(self.elapsed, self.waited))
                ax.step(sent, shares, where="post", color=plots.GREY, linestyle="--", label=say("load.from_sending"))
            due = say("load.from_due") if self.waited else None
            ax.step(np.sort(self.elapsed), shares, where="post", color=plots.BLUE, label=due)
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

    def plot_hit_rate(self) -> plots.Figure:
        """The hit rate over the time of the load.

        Raises:
            MeasurementError: if no answer carried ``X-Cache``.
        """
        windows = self.hit_rate_over_time(max(1, min(20, sum(self.x_cache.values()) // 20)))
        return _hits.over_time(windows, self.hit_rate or 0.0)

    def plot_memory(self) -> plots.Figure:
        """The memory of Redis over the time of the load.

        Raises:
            MeasurementError: if there was no Redis, or it never answered.
        """
        if not self.memory:
            raise MeasurementError(say("load.no_memory"))
        return _hits.memory(pd.DataFrame(self.memory, columns=["moment_s", "used_bytes"]))

    @property
    def _by_kind(self) -> dict[str, Any]:
        kinds, elapsed = np.array([kind or "–" for kind in self.caches]), np.array(self.elapsed)
        order = [*_hits.KINDS, *sorted(set(kinds) - set(_hits.KINDS))]
        return {kind: elapsed[kinds == kind] for kind in order if kind in kinds}

    def _need_cache(self) -> None:
        if not self.x_cache:
            raise MeasurementError(say("load.no_cache", path=self.path))

    def __repr__(self) -> str:
        seen = self.percentiles
        says = [
            say(
                "stats.load",
                requests=self.requests,
                rate=number(self.per_second, ",.0f"),
                p50=duration(seen["p50"]),
                p99=duration(seen["p99"]),
                errors=self.errors,
            )
        ]
        if self.hit_rate is not None:
            says.append(say("load.hit_rate", rate=100 * self.hit_rate))
        if self.capped:
            says.append(say("load.capped", count=self.capped, concurrency=self.concurrency))
        if self.errors or self.refused:
            says.append(_counted(self.statuses))
        return " · ".join(says)

    def _repr_html_(self) -> Safe:
        times = " · ".join(f"{name} {duration(value)}" for name, value in self.percentiles.items())
        body = [
            say("stats.load_card", times=times, outcomes=_counted(self.statuses), concurrency=self.concurrency),
            say("load.cache_card", kinds=_counted(self.x_cache), saved=self.saved) if self.caches else "",
            say("load.open_card", rate=number(self.rate, ",.5g")) if self.rate else "",
        ]
        note = say("stats.simulated", latency=self.latency_ms) if self.latency_ms else ""
        colour, symbol = (plots.ORANGE, "▲") if self.refused or self.capped else (plots.GREEN, "●")
        if self.errors:
            colour, symbol = plots.VERMILION, "✗"
        return card(repr(self), " ".join(filter(None, body)), colour=colour, symbol=symbol, note=note)


def _counted(counts: dict[Any, int]) -> str:
    return ", ".join(f"{name}: {number(times)}" for name, times in counts.items())
