"""Pictures of a load through a cache: how long hits and misses took, the hit rate over time, Redis' memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from labkit import plots
from labkit._text import duration, number, say

KINDS = ("HIT", "STALE", "MISS", "BYPASS")
COLOURS = {"HIT": plots.BLUE, "STALE": plots.ORANGE, "MISS": plots.VERMILION, "BYPASS": plots.PURPLE}
_LINES = {"HIT": "-", "STALE": "-.", "MISS": "--", "BYPASS": ":"}


def distribution(groups: Mapping[str, Any], latency_ms: float) -> plots.Figure:
    """How long the answers of each kind took: shares on a logarithmic axis, medians marked.

    Args:
        groups: what ``X-Cache`` said, and the seconds of the answers that said so.
        latency_ms: simulated round trip of each statement.
    """
    medians = {kind: float(np.median(times)) for kind, times in groups.items()}
    everything = np.concatenate(list(groups.values()))
    edges = np.geomspace(everything.min() * 0.9, everything.max() * 1.1, 60)

    def draw(ax: Any) -> None:
        for kind, times in groups.items():
            colour, line = COLOURS.get(kind, plots.GREY), _LINES.get(kind, ":")
            heights = 100 * np.histogram(times, edges)[0] / len(times)
            ax.stairs(heights, edges, fill=True, color=colour, alpha=0.35)
            ax.stairs(heights, edges, color=colour, linewidth=1.2)
            label = say("load.kind", kind=kind, count=len(times), median=duration(medians[kind]))
            ax.axvline(medians[kind], color=colour, linewidth=1.8, linestyle=line, label=label)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        simulated = "stats.time_axis_simulated" if latency_ms else "stats.time_axis"
        ax.set(xlabel=say(simulated, latency=latency_ms), ylabel=say("load.share_axis"), ylim=(0, None))
        plots.durations(ax.xaxis, log=True)

    says = _finding(medians)
    data = pd.DataFrame(
        {"x_cache": list(groups), "requests": list(map(len, groups.values())), "median_s": list(medians.values())}
    )
    return plots.figure(draw, title=says, alt=say("load.distribution_alt", says=says), data=data)


def _finding(medians: Mapping[str, float]) -> str:
    if not {"HIT", "MISS"} <= medians.keys():
        return " · ".join(say("load.only", kind=kind, median=duration(each)) for kind, each in medians.items())
    hit, miss = medians["HIT"], medians["MISS"]
    key = "load.faster" if miss > 1.1 * hit else "load.not_faster"
    return say(key, hit=duration(hit), miss=duration(miss), times=number(miss / hit, ",.3g"))


def over_time(windows: pd.DataFrame, whole: float) -> plots.Figure:
    """The hit rate, window by window.

    Args:
        windows: ``from_s`` and ``hit_rate`` (0 to 1, NaN where nothing was asked), in order of time.
        whole: hit rate of the whole load.
    """
    seen = windows.dropna()
    first, last = (100 * float(seen["hit_rate"].iloc[place]) for place in (0, -1))
    width = float(windows["to_s"].iloc[0] - windows["from_s"].iloc[0])

    def draw(ax: Any) -> None:
        ax.plot(seen["from_s"] + width / 2, 100 * seen["hit_rate"], "o-", color=plots.BLUE, linewidth=2, markersize=5)
        label = say("load.whole", rate=100 * whole)
        ax.axhline(100 * whole, color=plots.GREY, linewidth=1.4, linestyle="--", label=label)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        ax.set(xlabel=say("load.moment_axis"), ylabel=say("load.rate_axis"), ylim=(-2, 102), xlim=(0, None))
        plots.durations(ax.xaxis)

    key = "load.steady" if abs(last - first) < 5 else "load.rises" if last > first else "load.falls"
    says = say(key, first=first, last=last, whole=100 * whole)
    return plots.figure(draw, title=says, alt=say("load.over_time_alt", says=says), data=windows)


def memory(samples: pd.DataFrame) -> plots.Figure:
    """What Redis used: ``moment_s`` and ``used_bytes``, in order of time."""
    first, last, most = (float(samples["used_bytes"].iloc[0]), float(samples["used_bytes"].iloc[-1]), 0.0)
    most = float(samples["used_bytes"].max())
    unit, name = (1e6, "MB") if most >= 1e6 else (1e3, "kB")

    def draw(ax: Any) -> None:
        ax.plot(samples["moment_s"], samples["used_bytes"] / unit, "o-", color=plots.GREEN, linewidth=2, markersize=4)
        room = max(most - float(samples["used_bytes"].min()), 0.05 * most)
        low = max(0.0, float(samples["used_bytes"].min()) - 0.15 * room)
        ax.set(ylim=(low / unit, (most + 0.15 * room) / unit), xlabel=say("load.moment_axis"))
        ax.set_ylabel(say("load.memory_axis", unit=name))
        plots.durations(ax.xaxis)
        plots.numbers(ax.yaxis)

    key = "load.steady_memory" if abs(last - first) < 0.01 * most else "load.grew" if last > first else "load.shrank"
    says = say(key, by=_size(abs(last - first)), first=_size(first), last=_size(last))
    return plots.figure(draw, title=says, alt=say("load.memory_alt", says=says), data=samples)


def _size(size: float) -> str:
    return f"{number(size / 1e6, ',.3g')} MB" if size >= 1e6 else f"{number(size / 1e3, ',.3g')} kB"
