"""stats: fake time and simulated noise, so that error rates are counted instead of hoped for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from math import comb

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit import stats
from labkit._ratio import _rank
from labkit.errors import MeasurementError

Noise = Callable[["World"], float]


class World:
    """A clock that moves only when something runs, and by a noisy amount."""

    def __init__(self, seed: int, noise: Noise) -> None:
        self.now, self.chance, self.noise, self.mode = 0.0, random.Random(seed), noise, 1.0

    def clock(self) -> float:
        return self.now

    def task(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds * self.noise(self)

        return run


def quiet(world: World) -> float:
    return 1.0


def lognormal(world: World) -> float:
    return math.exp(world.chance.gauss(0, 0.15))


def bimodal(world: World) -> float:
    """A neighbour that comes and goes for many runs at a time."""
    if world.chance.random() < 0.05:
        world.mode = 1.0 if world.mode > 1.5 else 2.0
    return world.mode * math.exp(world.chance.gauss(0, 0.05))


def drifting(world: World) -> float:
    """A machine that grows hot: twice as slow after ten seconds."""
    return (1 + world.now / 10) * math.exp(world.chance.gauss(0, 0.1))


def heavy(world: World) -> float:
    """Mostly calm, now and then a pause of many times the run."""
    return 1 + 0.05 * world.chance.paretovariate(0.9)


def shared(world: World) -> float:
    """Bursts that hit a single run in five, up to five times as slow."""
    return math.exp(world.chance.gauss(0, 0.1)) * (1 + 4 * world.chance.random() * (world.chance.random() < 0.2))


NOISES = (lognormal, bimodal, drifting, heavy, shared)


def simulate(noise: Noise, a: float, b: float, seed: int, limit: float = 15.0) -> tuple[stats.Ratio, float]:
    world = World(seed, noise)
    ratio = stats.compare(world.task(a), world.task(b), limit=limit, seed=seed, clock=world.clock)
    return ratio, world.now


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.__name__)
@pytest.mark.parametrize(("seconds", "most"), [(0.02, 0), (0.8, 4)], ids=["fast", "slow"])
def test_a_against_itself_is_hardly_ever_called_different(noise: Noise, seconds: float, most: int) -> None:
    # A slow thing leaves time for eight pairs: their 95 % interval may be wrong in ten of 200 runs.
    verdicts = [simulate(noise, seconds, seconds, seed)[0].verdict for seed in range(200)]
    wrong = verdicts.count("faster") + verdicts.count("slower")
    assert wrong <= most, f"{wrong} false verdicts in 200"


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: noise.__name__)
def test_the_interval_holds_the_truth_as_often_as_it_says(noise: Noise) -> None:
    held = 0
    for seed in range(200):
        ratio, _ = simulate(noise, 0.03, 0.02, seed)
        held += ratio.low <= 1.5 <= ratio.high
    assert held >= 180, f"95 % intervals held the truth in {held} of 200"


@pytest.mark.parametrize("noise", (quiet, *NOISES), ids=lambda noise: noise.__name__)
def test_true_effects_are_found_and_told_apart(noise: Noise) -> None:
    assert [simulate(noise, 0.020, 0.010, seed)[0].verdict for seed in range(20)] == ["faster"] * 20
    assert [simulate(noise, 0.010, 0.020, seed)[0].verdict for seed in range(20)] == ["slower"] * 20
    found = [simulate(noise, 0.006, 0.005, seed)[0].verdict for seed in range(20)]
    assert found.count("faster") >= 15
    assert "slower" not in found and "equivalent" not in found


def test_differences_below_the_minimum_effect_do_not_count() -> None:
    assert simulate(quiet, 1.04, 1.0, 1)[0].verdict == "equivalent"
    assert simulate(quiet, 1.06, 1.0, 1)[0].verdict == "faster"
    assert [simulate(lognormal, 0.0102, 0.01, seed)[0].verdict for seed in range(20)].count("faster") == 0


@pytest.mark.parametrize("noise", (lognormal, bimodal, shared), ids=lambda noise: noise.__name__)
def test_it_ends_in_time_and_early_where_the_ratio_is_huge(noise: Noise) -> None:
    for seed in range(20):
        ratio, took = simulate(noise, 0.5, 0.01, seed)
        assert ratio.verdict == "faster"
        assert took <= 15 + 3
    _, took = simulate(lognormal, 0.5, 0.01, 1)
    assert took < 8
    assert simulate(lognormal, 0.5, 0.5, 1)[1] <= 15 + 2


def test_a_quiet_machine_needs_the_fewest_pairs_that_make_an_interval() -> None:
    ratio, took = simulate(quiet, 1.4, 0.035, 1)
    assert (ratio.pairs, ratio.verdict) == (6, "faster")
    assert ratio.ratio == pytest.approx(40)
    assert took == pytest.approx(7 * 1.435)


def test_what_is_too_slow_is_inconclusive_and_says_what_was_seen() -> None:
    ratio, took = simulate(quiet, 4.0, 0.1, 1)
    assert (ratio.verdict, ratio.low, ratio.high) == ("inconclusive", 0.0, math.inf)
    assert ratio.ratio == pytest.approx(40)
    assert "de los 6 pares" in ratio.says
    assert took <= 19.1
    world = World(1, quiet)
    ratio = stats.compare(world.task(99), world.task(99), clock=world.clock)
    assert (ratio.verdict, ratio.pairs, world.now) == ("inconclusive", 0, 99.0)
    assert math.isnan(ratio.ratio)
    assert ratio.times_a + ratio.times_b == (99.0,)
    assert ratio.df.empty and "0 de los 6" in repr(ratio) and "99,0 s" in ratio._repr_html_()


def test_noise_that_swamps_everything_is_inconclusive() -> None:
    def wild(world: World) -> float:
        return math.exp(world.chance.gauss(0, 2))

    verdicts = [simulate(wild, 0.5, 0.5, seed)[0].verdict for seed in range(40)]
    assert verdicts.count("inconclusive") >= 38


def test_the_order_within_pairs_is_random_and_reproducible() -> None:
    def orders(seed: int) -> str:
        world, ran = World(1, quiet), []

        def noted(name: str) -> Callable[[], None]:
            task = world.task(0.5)
            return lambda: (ran.append(name), task())[1]

        stats.compare(noted("a"), noted("b"), seed=seed, precision=1e-9, clock=world.clock, limit=30)
        return "".join(ran)

    order = orders(5)
    assert order == orders(5) != orders(6)
    pairs = {order[i : i + 2] for i in range(0, len(order) - 1, 2)}
    assert pairs == {"ab", "ba"}


def test_whatever_runs_second_being_faster_favours_neither_side() -> None:
    def run(seed: int) -> str:
        world = World(seed, quiet)
        state = {"runs": 0}

        def task() -> None:
            state["runs"] += 1
            world.now += 0.01 if state["runs"] % 2 else 0.008  # whatever runs second finds warm caches

        return stats.compare(task, task, seed=seed, clock=world.clock).verdict

    assert not {run(seed) for seed in range(30)} & {"faster", "slower"}


def test_errors_of_what_is_measured_go_through() -> None:
    with pytest.raises(ZeroDivisionError):
        stats.compare(lambda: 1 / 0, lambda: None)


@pytest.mark.parametrize("options", [{"limit": 0}, {"minimum_effect": -1}, {"precision": 0}])
def test_unusable_limits_are_named(options: dict[str, float]) -> None:
    with pytest.raises(MeasurementError, match="mayor que 0"):
        stats.compare(lambda: None, lambda: None, **options)  # type: ignore[arg-type]


def test_the_async_twin_times_coroutines_or_believes_their_own_seconds() -> None:
    async def main() -> None:
        world = World(3, lognormal)
        a, b = world.task(0.04), world.task(0.01)

        async def timed_a() -> None:
            a()

        async def timed_b() -> None:
            b()

        async def own() -> float:
            world.now += 1.0  # what surrounds the measurement does not count
            return 0.25

        ratio = await stats.compare_async(timed_a, timed_b, clock=world.clock, seed=1)
        assert ratio.verdict == "faster" and 3.5 < ratio.ratio < 4.5
        ratio = await stats.compare_async(own, own, clock=world.clock, seed=1)
        assert (ratio.verdict, set(ratio.times_a)) == ("equivalent", {0.25})
        seconds = iter([0.25] * 17 + [math.inf])

        async def cut_off() -> float:
            return next(seconds)

        ratio = await stats.compare_async(cut_off, cut_off, clock=world.clock, seed=1)
        assert (ratio.pairs, next(seconds, None)) == (7, None), "the cold pair and the one that was cut do not count"

    anyio.run(main)


def test_ranks_are_the_exact_binomial_ones() -> None:
    # Conover's table of order-statistic intervals for the median: n -> rank from either end at 95 %.
    assert {n: _rank(n, 0.95) for n in (5, 6, 9, 12, 20, 50)} == {5: 0, 6: 1, 9: 2, 12: 3, 20: 6, 50: 18}
    for n in range(6, 200):
        k = _rank(n, 0.95)
        outside = 2 * sum(comb(n, i) for i in range(k))
        assert outside <= 0.05 * 2**n < outside + 2 * comb(n, k)


@given(st.lists(st.floats(-1e9, 1e9), min_size=6, max_size=60))
def test_the_interval_holds_the_median_and_values_that_were_seen(values: list[float]) -> None:
    middle, low, high = stats.median_interval(values)
    assert low <= middle <= high
    assert {low, high} <= set(values)


def test_percentiles_are_values_that_were_seen() -> None:
    assert stats.percentiles(range(1, 101)) == {"p50": 50, "p90": 90, "p95": 95, "p99": 99}
    assert stats.percentiles([7.0], (50, 99.9)) == {"p50": 7.0, "p99.9": 7.0}
    for empty in (stats.percentiles, stats.median_interval):
        with pytest.raises(MeasurementError, match="No hay mediciones"):
            empty([])


def test_ratios_are_written_with_the_decimals_they_deserve() -> None:
    assert stats.times(38.4, 33.2, math.inf) == ["38", "33", "∞"]
    assert stats.times(1.07, 0.98) == ["1,07", "0,98"]
    assert stats.times(1051.0) == ["1.051"]


def test_one_shot_comparisons_of_a_thing_with_itself_scatter() -> None:
    world = World(4, lognormal)
    shots = stats.one_shot_spread(world.task(0.01), pairs=40, clock=world.clock)
    assert len(shots.ratios) == 40
    assert shots.differ == sum(max(r, 1 / r) > 1.1 for r in shots.ratios) / 40 > 0.25
    assert shots.against_itself.verdict not in ("faster", "slower")
    assert "de 40 pares idénticos" in repr(shots) and list(shots.df.columns) == ["a_s", "b_s", "ratio"]
    figure = shots.plot()
    assert figure.png().startswith(b"\x89PNG") and len(figure.alt.split()) >= 5
    assert "consigo mismo" in shots._repr_html_()


def test_one_shot_stops_at_its_limit_and_says_when_nothing_fits() -> None:
    world = World(1, quiet)
    assert len(stats.one_shot_spread(world.task(1.0), clock=world.clock).ratios) == 7
    with pytest.raises(MeasurementError, match="15 s"):
        stats.one_shot_spread(world.task(20.0), clock=world.clock)


def test_a_ratio_shows_itself_in_words_table_and_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio = stats.Ratio.of([0.4, 0.41, 0.39, 0.4, 0.42, 0.4], [0.1] * 6)
    assert repr(ratio) == "▲ 4,0 veces más rápido (3,9–4,2) · 6 pares"
    assert repr(stats.Ratio.of(ratio.times_b, ratio.times_a)) == "▼ 4,0 veces más lento (3,9–4,2) · 6 pares"
    assert ratio.df["ratio"].tolist() == pytest.approx([4, 4.1, 3.9, 4, 4.2, 4])
    assert ratio.plot().table is not None and "400 ms" in ratio._repr_html_()
    monkeypatch.setenv("LABKIT_LANG", "en")
    assert repr(ratio) == "▲ 4.0 times faster (3.9–4.2) · 6 pairs"
