"""Active users: as many as a naive model says, within a bound."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.monitoring import users
from labkit.monitoring.users import MOST, WINDOW, ActiveUsers


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(name="clock")
def the_clock() -> Clock:
    return Clock()


Steps = st.lists(st.tuples(st.sampled_from([0, 0, 1, 7, 150, 299, 300, 301]), st.integers(0, 12), st.booleans()))


@given(Steps, st.sampled_from([1, 2, 1_000]))
def test_as_many_as_a_naive_model_says(steps: list[tuple[int, int, bool]], tidy: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(users, "_TIDY", tidy)
        clock = Clock()
        active = ActiveUsers(clock=clock)
        requests: list[tuple[int, int]] = []
        for pause, user, ask in steps:
            clock.now += pause
            active.saw(user)
            requests.append((clock.now, user))
            expected = len({who for when, who in requests if clock.now - when < WINDOW})
            assert not ask or active.count() == expected
        assert active.count() == len({who for when, who in requests if clock.now - when < WINDOW})
        clock.now += 300
        assert active.count() == 0


def test_users_go_after_five_minutes_without_a_request(clock: Clock) -> None:
    active = ActiveUsers(clock=clock)
    active.saw("ana")
    active.saw(("luis", 2))
    clock.now = 299
    active.saw("ana")
    assert active.count() == 2
    clock.now = 300
    assert active.count() == 1
    clock.now = 599
    assert active.count() == 0


def test_memory_is_bounded_though_nobody_asks(clock: Clock) -> None:
    """A scraper that never comes: those who have gone are dropped all the same."""
    active = ActiveUsers(clock=clock)
    for round_ in range(50):
        clock.now = 300 * round_
        for user in range(1_500):
            active.saw((round_, user))
        assert len(active._seen) <= 3_000
    assert active.count() == 1_500


def test_beyond_the_bound_the_count_stays_there(clock: Clock) -> None:
    active = ActiveUsers(most=10, clock=clock)
    for user in range(1_000):
        active.saw(user)
        assert len(active._seen) <= 10
    assert active.count() == 10
    clock.now = 299
    active.saw(0)  # one of the ten: still known
    clock.now = 301
    active.saw("new")
    assert active.count() == 2
    assert MOST == 100_000


def test_a_crowd_beyond_the_bound_costs_no_search_each(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    active = ActiveUsers(most=100, clock=clock)
    searches = []
    forget = active._forget
    monkeypatch.setattr(active, "_forget", lambda now: (searches.append(now), forget(now)))
    for user in range(5_000):
        active.saw(user)
    clock.now = 1
    for user in range(5_000):
        active.saw(user)
    assert searches == [0, 1]


def test_from_many_threads() -> None:
    active = ActiveUsers()
    start = threading.Barrier(8)

    def work(own: int) -> None:
        start.wait()
        for i in range(1_000):
            active.saw(i)
            active.saw((own, i))
            if not i % 100:
                active.count()

    threads = [threading.Thread(target=work, args=[own]) for own in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert active.count() == 9_000
