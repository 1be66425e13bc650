"""The same traffic replayed against fixed lives and against an adaptive one, on a false clock and without Redis.

A cache trades hits for stale answers. Two ways to choose a TTL are therefore compared at the **same share of stale
answers**: fixed lives of all lengths make a curve, and the question is whether the adaptive points lie above it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from labkit import plots, stats
from labkit._html import Safe, card
from labkit._text import say
from labkit.cache.adaptive import AdaptiveTTL
from labkit.errors import MeasurementError

Floats = npt.NDArray[np.float64]


class Traffic(NamedTuple):
    """Requests and changes in order of time: seconds and key of each request, seconds of the changes of each key."""

    times: Floats
    keys: npt.NDArray[np.int64]
    changes: list[Floats]


def zipf_traffic(
    seed: int,
    requests: int = 20_000,
    *,
    ids: int = 300,
    s: float = 1.1,
    rate: float = 5.0,
    drift: float = 0.1,
    every: tuple[float, float] = (10.0, 86_400.0),
) -> Traffic:
    """Random requests for ids of Zipf popularity, each of which changes at a rate of its own, whatever its popularity.

    Args:
        seed: gives other requests, changes and favourites.
        requests: how many.
        ids, s: how many ids, and how unevenly they are asked for (`labkit.load.zipf`).
        rate: requests a second.
        drift: share of the ids whose popularity is dealt anew after each twentieth of the requests.
        every: the shortest and the longest mean time between two changes of an id, in seconds.
    """
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, requests))
    shares = np.arange(1, ids + 1) ** -s
    rank = rng.choice(ids, requests, p=shares / shares.sum())
    who, keys = rng.permutation(ids), np.empty(requests, dtype=np.int64)
    for part in np.array_split(np.arange(requests), 20):
        keys[part] = who[rank[part]]
        moved = rng.choice(ids, int(drift * ids), replace=False)
        who[moved] = rng.permutation(who[moved])
    often = 1 / np.exp(rng.uniform(math.log(every[0]), math.log(every[1]), ids))
    return Traffic(times, keys, [np.sort(rng.random(rng.poisson(each * times[-1]))) * times[-1] for each in often])


@dataclass(frozen=True, repr=False)
class Replay:
    """What each way to choose a TTL gave on the same traffic, one run a seed.

    Attributes:
        runs: one row a run: ``kind`` ("fixed" or "adaptive"), ``setting`` (seconds of the fixed TTL, or the share of
            stale answers aimed at), ``seed``, ``stale`` and ``hits`` (shares of all answers), and ``gain``: the hits
            of an adaptive run less those of a fixed TTL with as many stale answers on the same traffic.
    """

    runs: pd.DataFrame

    @property
    def df(self) -> pd.DataFrame:
        """One row a setting: the medians over the seeds, the 95 % interval of the gain, and the verdict.

        ``verdict`` is ``"higher"``, ``"lower"`` or ``"inconclusive"``; an interval needs six seeds.
        """
        rows = []
        for (kind, setting), part in self.runs.groupby(["kind", "setting"], sort=False):
            gain = stats.median_interval(part["gain"].tolist()) if kind == "adaptive" else (math.nan,) * 3
            verdict = "higher" if gain[1] > 0 else "lower" if gain[2] < 0 else "inconclusive"
            middle = part[["stale", "hits"]].median()
            rows.append((kind, setting, *middle, *gain, verdict if kind == "adaptive" else ""))
        return pd.DataFrame(rows, columns=["kind", "setting", "stale", "hits", "gain", "low", "high", "verdict"])

    def plot(self) -> plots.Figure:
        """Hit rate against the share of stale answers: a curve of fixed lives, a point for each adaptive target."""
        data = self.df

        def draw(ax: Any) -> None:
            for kind, colour, style in (("fixed", plots.BEFORE, "o-"), ("adaptive", plots.AFTER, "D")):
                runs, middle = self.runs[self.runs["kind"] == kind], data[data["kind"] == kind]
                ax.plot(100 * runs["stale"], 100 * runs["hits"], style[0], color=colour, alpha=0.25, markersize=3)
                ax.plot(
                    100 * middle["stale"], 100 * middle["hits"], style, color=colour, label=say(f"smart.{kind}_points")
                )
            ax.set(xlabel=say("smart.stale_axis"), ylabel=say("smart.hits_axis"), ylim=(0, 100))
            ax.set(xlim=(0, 200 * data[data["kind"] == "adaptive"]["stale"].max()))
            plots.numbers(ax.xaxis)
            ax.legend(loc="lower right")

        return plots.figure(draw, title=repr(self), alt=say("smart.replay_alt", says=repr(self)), data=data)

    def __repr__(self) -> str:
        found = self.df[lambda df: df["kind"] == "adaptive"]
        higher, gains = int((found["verdict"] == "higher").sum()), (100 * found["gain"]).agg(["min", "max"])
        return say("smart.replay", higher=higher, targets=len(found), low=gains["min"], high=gains["max"])

    def _repr_html_(self) -> Safe:
        won = self.df["verdict"].isin(["higher", ""]).all()
        colour, symbol = (plots.GREEN, "●") if won else (plots.ORANGE, "▲")
        note = say("smart.seeds", seeds=self.runs["seed"].nunique())
        return card(repr(self), plots.frame(self.df), colour=colour, symbol=symbol, note=note)


def replay(
    traffic: Callable[[int], Traffic],
    *,
    ttls: Sequence[float] | None = None,
    staleness: Sequence[float] = (0.01, 0.02, 0.05, 0.1),
    seeds: Sequence[int] = range(6),
    adaptive: Callable[..., AdaptiveTTL] = AdaptiveTTL,
) -> Replay:
    """Replay ``traffic(seed)`` for every seed against every fixed TTL and every adaptive target. Some 5 s.

    Args:
        traffic: gives the requests and changes of a seed, for instance `zipf_traffic`.
        ttls: fixed lives in seconds; default: 16, evenly on a logarithmic scale, from an instant to the whole time.
        staleness: targets of the adaptive TTL, shares of all answers.
        seeds: six or more for a 95 % interval.
        adaptive: called as ``adaptive(target, clock=clock)`` for a fresh one; a learner may put in her own.

    Raises:
        MeasurementError: if there is no seed, no target or no traffic.
    """
    rows: list[tuple[Any, ...]] = []
    for seed in seeds:
        played = traffic(seed)
        if not (len(played.times) and len(staleness)):
            break
        end = float(played.times[-1])
        ttls = ttls or [float(f"{ttl:.2g}") for ttl in np.geomspace(end / 20_000, end, 16)]
        curve = [(ttl, *_fixed(played, ttl)) for ttl in ttls]
        stale, hits = (np.maximum.accumulate([each[i] for each in sorted(curve)]) for i in (1, 2))
        rows += [("fixed", ttl, seed, *found, math.nan) for ttl, *found in curve]
        for target in staleness:
            share, hit = _adaptive(played, adaptive, target)
            rows.append(("adaptive", target, seed, share, hit, hit - float(np.interp(share, [0, *stale], [0, *hits]))))
    if not rows:
        raise MeasurementError(say("smart.no_traffic"))
    return Replay(pd.DataFrame(rows, columns=["kind", "setting", "seed", "stale", "hits", "gain"]))


def _fixed(traffic: Traffic, ttl: float) -> tuple[float, float]:
    """Shares of stale answers and of hits, key by key: from one fill straight to the next."""
    hits = stale = 0
    for key in np.unique(traffic.keys):
        times, changes = traffic.times[traffic.keys == key], np.append(traffic.changes[key], math.inf)
        ends = np.searchsorted(times, times + ttl).tolist()
        changed = np.searchsorted(times, changes[np.searchsorted(changes, times, side="right")]).tolist()
        fill = 0
        while fill < len(times):
            end = max(ends[fill], fill + 1)
            hits += end - fill - 1
            stale += max(0, end - max(changed[fill], fill + 1))
            fill = end
    return stale / len(traffic.times), hits / len(traffic.times)


def _adaptive(traffic: Traffic, make: Callable[..., AdaptiveTTL], target: float) -> tuple[float, float]:
    """Shares of stale answers and of hits, request by request: what it learns of one key serves all."""
    now = hits = stale = 0
    learned = make(target, clock=lambda: now)
    changes = [each.tolist() for each in traffic.changes]
    kept: dict[int, tuple[float, float]] = {}  # when it ends, and when it turns stale
    for now, key in zip(traffic.times.tolist(), traffic.keys.tolist(), strict=True):
        ends, changed = kept.get(key, (0.0, 0.0))
        if now < ends:
            learned.seen(str(key))
            hits += 1
            stale += changed <= now
        else:
            version = bisect_right(changes[key], now)
            changed = changes[key][version] if version < len(changes[key]) else math.inf
            kept[key] = now + learned.filled(str(key), b"%d" % version), changed
    return stale / len(traffic.times), hits / len(traffic.times)
