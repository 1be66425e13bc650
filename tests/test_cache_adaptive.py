"""The adaptive TTL: what it learns, what it promises, and what it gains over fixed lives on the same traffic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from labkit import replay as replaying
from labkit.blog.generator import generate
from labkit.blog.traffic import visits
from labkit.cache.adaptive import AdaptiveTTL
from labkit.errors import CacheError, MeasurementError
from labkit.replay import Traffic, replay, zipf_traffic


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def drive(ttl: AdaptiveTTL, clock: Clock, keys: dict[str, tuple[float, float]], seconds: float) -> None:
    """Ask for each key every so many seconds; its value changes every so many seconds."""
    kept: dict[str, float] = {}
    due = {key: every for key, (every, _) in keys.items()}
    while clock.now < seconds:
        key = min(due, key=due.__getitem__)
        clock.now, (every, changes) = due[key], keys[key]
        due[key] += every
        if clock.now < kept.get(key, 0.0):
            ttl.seen(key)
        else:
            kept[key] = clock.now + ttl.filled(key, b"%d" % (clock.now // changes))


def test_what_changes_or_is_asked_for_more_often_lives_shorter() -> None:
    clock = Clock()
    ttl = AdaptiveTTL(clock=clock, shortest=0.01)
    drive(ttl, clock, {"hot": (0.5, 500), "cold": (50, 500), "restless": (0.5, 20), "still": (0.5, 1e9)}, 20_000)
    life = ttl.df.set_index("key")["ttl_s"]
    assert life["restless"] < life["hot"] < life["cold"] and life["hot"] < life["still"]


def test_rates_are_estimated_from_fills_and_hits() -> None:
    clock = Clock()
    ttl = AdaptiveTTL(clock=clock)
    drive(ttl, clock, {"a": (1, 200), "b": (5, 30)}, 50_000)
    found = ttl.df.set_index("key")
    assert found.loc["a", "accesses_per_s"] == pytest.approx(1, rel=0.1)
    assert found.loc["b", "accesses_per_s"] == pytest.approx(0.2, rel=0.1)
    assert found.loc["a", "changes_per_s"] == pytest.approx(1 / 200, rel=0.5)
    assert found.loc["b", "changes_per_s"] == pytest.approx(1 / 30, rel=0.5)


def test_changes_that_no_fill_saw_are_reckoned_with() -> None:
    """Asked for every 10 s and changing every 4 on average: nearly every fill differs, as with any higher rate."""
    clock, chance = Clock(), np.random.default_rng(3)
    ttl, version = AdaptiveTTL(clock=clock, shortest=1, longest=1), 0
    for _ in range(500):
        clock.now += 10
        version += chance.poisson(2.5)
        ttl.filled("a", b"%d" % version)
    assert 0.15 < ttl.df["changes_per_s"][0] < 0.4  # a share of changed fills alone would say 0.09


@pytest.mark.parametrize(("changes", "last"), [(True, 2), (False, 60)])
def test_lives_keep_within_their_bounds(changes: bool, last: float) -> None:
    clock = Clock()
    ttl = AdaptiveTTL(clock=clock, shortest=2, longest=60)
    for i in range(500):
        life = ttl.filled("a", b"%d" % (i * changes))
        assert 2 <= life <= 60
        for _ in range(10):
            ttl.seen("a")
        clock.now += life
    assert life == last


def test_memory_is_bounded() -> None:
    ttl = AdaptiveTTL(most=100, clock=Clock())
    for i in range(1_000):
        ttl.filled(f"k{i}", b"")
        ttl.filled("kept", b"")
        ttl.seen(f"stranger{i}")
    assert len(ttl.df) == 100 and ttl._keys["kept"].fills > 19.95  # it was never forgotten


def test_an_announced_change_does_not_shorten_lives() -> None:
    def life(announced: bool) -> float:
        clock = Clock()
        ttl, version, end = AdaptiveTTL(clock=clock), 0, 0.0
        for second in range(5_000):
            clock.now = float(second)
            if second % 50 == 0:
                version, end = version + 1, clock.now if announced else end
                if announced:
                    ttl.forget("a")
            if clock.now >= end:
                end = clock.now + ttl.filled("a", b"%d" % version)
            else:
                ttl.seen("a")
        return float(ttl.df["ttl_s"][0])

    assert life(announced=True) > 5 * life(announced=False)
    AdaptiveTTL().forget("unknown")


@pytest.mark.parametrize(
    "options",
    [{"staleness": 0}, {"staleness": 1}, {"staleness": math.nan}, {"shortest": 0}, {"longest": 0.5}, {"most": 0}],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(CacheError, match=next(iter(options))):
        AdaptiveTTL(**options)


def test_it_says_what_it_knows() -> None:
    ttl = AdaptiveTTL(0.05)
    ttl.filled("a", b"1")
    assert repr(ttl) == "TTL adaptativo · hasta 5 % de respuestas obsoletas · claves conocidas: 1"


# --- the replay -------------------------------------------------------------------------------------------------------


def brute(traffic: Traffic, ttl: float) -> tuple[float, float]:
    """The same as ``_fixed``, request by request, as simple as can be."""
    filled: dict[int, float] = {}
    hits = stale = 0
    for now, key in zip(traffic.times, traffic.keys, strict=True):
        if key in filled and now < filled[key] + ttl:
            hits += 1
            stale += any(filled[key] < change <= now for change in traffic.changes[key])
        else:
            filled[key] = now
    return stale / len(traffic.times), hits / len(traffic.times)


@pytest.mark.parametrize("ttl", [0.5, 7.0, 100.0, 1e6])
def test_the_replay_counts_as_a_plain_loop_does(ttl: float) -> None:
    traffic = zipf_traffic(1, 1_000, ids=30)

    class Fixed(AdaptiveTTL):
        def filled(self, key: str, data: bytes) -> float:
            return ttl

    assert replaying._fixed(traffic, ttl) == brute(traffic, ttl)
    assert replaying._adaptive(traffic, Fixed, 0.02) == brute(traffic, ttl)


def test_on_zipf_traffic_that_drifts_it_hits_more_at_equal_staleness() -> None:
    found = replay(lambda seed: zipf_traffic(seed, 10_000), staleness=(0.01, 0.02, 0.05))
    points = found.df[lambda df: df["kind"] == "adaptive"]
    assert list(points["verdict"]) == ["higher"] * 3 and (points["low"] > 0.03).all()
    assert (points["stale"] < 2 * points["setting"]).all()
    assert "3 de 3 objetivos" in repr(found)


def test_in_the_rhythm_of_the_blog_it_hits_more_at_equal_staleness() -> None:
    points = replay(lambda seed: Traffic(*visits(seed, 10_000)), staleness=(0.01, 0.02, 0.05)).df
    points = points[points["kind"] == "adaptive"]
    assert list(points["verdict"]) == ["higher"] * 3 and (points["low"] > 0.03).all()
    assert (points["stale"] < 2 * points["setting"]).all()


def test_where_all_keys_are_alike_there_is_nothing_to_win_and_it_says_so() -> None:
    def even(seed: int) -> Traffic:
        return zipf_traffic(seed, 10_000, s=0, every=(600, 600), drift=0)

    found = replay(even, staleness=(0.02, 0.05))
    points = found.df[lambda df: df["kind"] == "adaptive"]
    assert "higher" not in set(points["verdict"]) and (points["gain"] > -0.1).all()
    assert "0 de 2 objetivos" in repr(found) and "▲" in found._repr_html_()


def test_too_few_seeds_prove_nothing() -> None:
    found = replay(lambda seed: zipf_traffic(seed, 2_000), seeds=range(3), staleness=(0.05,), ttls=(1, 10, 100))
    assert list(found.df["verdict"]) == ["", "", "", "inconclusive"]
    assert list(found.df["setting"]) == [1, 10, 100, 0.05]


def test_the_figure_carries_its_table_and_its_words() -> None:
    found = replay(lambda seed: zipf_traffic(seed, 2_000), seeds=range(6), staleness=(0.05,))
    figure = found.plot()
    assert figure.table is not None and len(figure.table) == 17 and len(figure.alt.split()) > 5
    assert figure.axes[0].get_title(loc="left") == repr(found)
    assert len(found.runs) == 6 * 17 and figure.png()[:4] == b"\x89PNG"


def test_nothing_to_replay_is_said() -> None:
    for options in ({"seeds": ()}, {"staleness": ()}):
        with pytest.raises(MeasurementError):
            replay(zipf_traffic, **options)
    with pytest.raises(MeasurementError):
        replay(lambda seed: Traffic(np.array([]), np.array([], dtype=np.int64), []))


def test_visits_have_the_rhythm_and_the_changes_of_the_blog() -> None:
    times, pages, changes = visits(7, 5_000)
    assert (np.diff(times) >= 0).all() and len(changes) == len(generate(7).user_time) and pages.max() < len(changes)
    weekend = (times % (7 * 86_400) >= 5 * 86_400).mean()
    night = ((times % 86_400) // 3600).astype(int)
    assert weekend < 0.22 and np.isin(night, range(2, 8)).mean() < 0.1
    often = sorted(map(len, changes))
    assert often[-1] > 10 * max(1, often[len(often) // 2])  # a few pages change much, most hardly ever
