"""What an adaptive TTL gains over a fixed one with as many stale answers, on the same traffic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks._measure import QUICK, Case, compare, publish, repeat
from labkit.blog.traffic import visits
from labkit.cache.adaptive import AdaptiveTTL
from labkit.replay import Traffic, replay, zipf_traffic

SEEDS = range(6 if QUICK else 12)
TRAFFIC: dict[str, Callable[[int], Traffic]] = {
    "Zipf (s = 1.1, 300 ids) with drift; each id changes every 10 s to once a day": zipf_traffic,
    "The blog's pages over four weeks, read and changed in its own rhythm": lambda seed: Traffic(*visits(seed)),
    "Even: every id as popular as any other, and changing every 600 s": lambda seed: zipf_traffic(
        seed, s=0, every=(600, 600), drift=0
    ),
}


@dataclass
class Gains:
    """A line a target: shares of stale answers and hits, and the hits won at equal staleness with their interval."""

    title: str
    rows: list[dict[str, Any]]

    def markdown(self) -> str:
        """As GitHub shows it."""
        lines = [
            "| target: stale | stale | hits | fixed TTL, as stale: hits | gain in points | 95 % interval | |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            shares = " | ".join(f"{100 * row[name]:.1f} %" for name in ("setting", "stale", "hits"))
            gain, low, high = (100 * row[name] for name in ("gain", "low", "high"))
            fixed = 100 * row["hits"] - gain
            lines.append(f"| {shares} | {fixed:.1f} % | {gain:+.1f} | {low:+.1f} to {high:+.1f} | {row['verdict']} |")
        return f"### {self.title}\n\nMedians over {len(SEEDS)} seeds.\n\n" + "\n".join(lines) + "\n"


def gains(title: str, traffic: Callable[[int], Traffic]) -> Gains:
    """Replay one kind of traffic."""
    found = replay(traffic, seeds=SEEDS).df
    return Gains(title, found[found["kind"] == "adaptive"].drop(columns="kind").to_dict("records"))


def costs() -> Any:
    """What the learning adds to a hit and to a fill."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.01
        return now

    ttl, data, plain = AdaptiveTTL(clock=clock), b"x" * 1000, {"key": 1}
    ttl.filled("key", data)
    cases = [
        Case("dict look-up", repeat(lambda: plain.get("key"))),
        Case("a hit is seen", repeat(lambda: ttl.seen("key"))),
        Case("a fill of 1 KB is learned from", repeat(lambda: ttl.filled("key", data))),
    ]
    return compare("What learning costs", "a look-up in a dict", cases, seconds=2)


if __name__ == "__main__":
    publish(
        "adaptive",
        "Hit rate against the share of stale answers: AdaptiveTTL beside 16 fixed lives, interpolated at the same "
        f"share of stale answers (error below the grid's step of a factor {math.exp(math.log(20_000) / 15):.1f}).",
        [*(gains(title, traffic) for title, traffic in TRAFFIC.items()), costs()],
    )
