"""Exercise 4.1: a life for each page, judged by replayed traffic at equal shares of stale answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from labkit.blog.traffic import visits
from labkit.cache import cached
from labkit.course.checks import Context, Verdict, almost, done
from labkit.course.lessons._lives import STALE, chosen
from labkit.course.probe import Probe
from labkit.replay import Traffic, replay, zipf_traffic

SEEDS = 3
"""Runs of each traffic, whose median counts."""

LEAST = 0.02
"""Points of hit rate (1 = all) by which to beat the fixed TTL: less may be luck."""

TOO_STALE = 4 * STALE
"""Share of stale answers from which on the budget was not heard: the best answer stays below half of that."""

DOWN = 5
"""Requests while Redis is down."""

SHORTEST, LONGEST = 5.0, 600.0
"""Bounds of the direct questions; others than the starter's, so that who wrote numbers instead is found."""


def check_4_1(ctx: Context, choose_ttl: Callable[..., Any]) -> Verdict:
    """Whether it beats every fixed TTL on two traffics; then its bounds; then on an endpoint, with Redis down."""

    def ask(accesses: float, changes: float, budget: float, *bounds: float) -> float:
        life = ctx.call(choose_ttl, accesses, changes, budget, *bounds)
        number = isinstance(life, Real) and not isinstance(life, bool) and not math.isnan(life)
        ctx.require(number, "ttl_not_number", what=repr(life)[:40])
        return float(life)

    ask(1.0, 0.01, 0.02)
    gains = _beats(ctx, choose_ttl)
    for name, given in (("changes", (0.5, 0.0)), ("accesses", (0.0, 0.01)), ("both", (0.0, 0.0))):
        try:
            life = ask(*given, 0.02, SHORTEST, LONGEST)
        except ZeroDivisionError:
            raise almost(f"ttl_zero_{name}") from None
        ctx.require(SHORTEST <= life <= LONGEST, "ttl_bounds", life=life, shortest=SHORTEST, longest=LONGEST)
        ctx.require(name != "changes" or life == LONGEST, "ttl_still", life=life, longest=LONGEST)
    for given in ((1000.0, 1000.0), (1e-6, 1e-9)):
        life = ask(*given, 0.02, SHORTEST, LONGEST)
        ctx.require(SHORTEST <= life <= LONGEST, "ttl_bounds", life=life, shortest=SHORTEST, longest=LONGEST)
    _live(ctx, choose_ttl)
    return done("ttl_done", asked=DOWN, **gains)


def _beats(ctx: Context, choose_ttl: Callable[..., Any]) -> dict[str, float]:
    """The points won on each traffic."""
    gains = {}
    for name, traffic in (("zipf", zipf_traffic), ("blog", lambda seed: Traffic(*visits(seed)))):
        seeds = range(ctx.seed, ctx.seed + SEEDS)
        found = replay(traffic, staleness=[STALE], seeds=seeds, adaptive=chosen(choose_ttl, ctx.limited))
        row = found.df.query("kind == 'adaptive'").iloc[0]
        gain = float(found.runs["gain"].median())
        counts = {"gain": 100 * gain, "loss": -100 * gain, "stale": 100 * row["stale"], "hits": 100 * row["hits"]}
        where = ctx.words(f"ttl_{name}")
        ctx.require(row["stale"] <= TOO_STALE, "ttl_stale", **counts, allowed=100 * STALE, where=where)
        if gain <= -LEAST:
            raise almost(f"ttl_worse_{name}", **counts)
        ctx.require(gain >= LEAST, "ttl_same", **counts, where=where)
        gains[name] = 100 * gain
    return gains


def _live(ctx: Context, choose_ttl: Callable[..., Any]) -> None:
    """On an endpoint of the Lab, whose Redis goes down and comes back: every request must be answered."""
    learned = chosen(choose_ttl, ctx.limited)(STALE)

    def decorate(endpoint: Any) -> Any:
        return cached(ttl=learned, key_prefix="lesson-04", client=ctx.lab.app.state.cache)(endpoint)

    with Probe(ctx.lab, decorate) as probe:
        probe.ask(1, 1, 2)
        with ctx.lab.fault("redis_down"):
            answers = probe.ask(*range(1, DOWN + 1))
        answers += probe.ask(1, 1)
        failed = sum(answer.outcome == "failed" for answer in answers)
        ctx.require(not failed, "ttl_live_failed", failed=failed, asked=len(answers))
