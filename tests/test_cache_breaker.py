"""The circuit breaker, by a clock of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from labkit.cache.breaker import Breaker
from labkit.cache.events import Event


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_opens_at_the_first_failure_and_probes_after_recovery(clock: Clock) -> None:
    breaker = Breaker(recovery=0.25, clock=clock)
    assert breaker.closed
    assert not breaker.due()
    breaker.trip("timeout")
    assert breaker.state == "open"
    clock.now += 0.24
    assert not breaker.due()
    clock.now += 0.01
    assert breaker.due()
    assert breaker.state == "half_open"
    assert not breaker.due(), "one probe is enough"
    assert breaker.close()
    assert [(change[1], change[2]) for change in breaker.changes] == [
        ("open", "timeout"),
        ("half_open", ""),
        ("closed", ""),
    ]


def test_opens_again_when_the_probe_fails(clock: Clock) -> None:
    breaker = Breaker(recovery=1, clock=clock)
    breaker.trip("lost")
    clock.now += 1
    assert breaker.due()
    breaker.trip("lost")
    assert not breaker.close(), "what failed meanwhile counts"
    assert breaker.state == "open"
    assert not breaker.due()
    clock.now += 1
    assert breaker.due()


def test_failures_while_open_do_not_put_the_probe_off(clock: Clock) -> None:
    breaker = Breaker(recovery=1, clock=clock)
    breaker.trip("lost")
    for _ in range(10):
        clock.now += 0.125
        breaker.trip("lost")
    assert breaker.due()
    assert len(breaker.changes) == 2


def test_stays_open_while_something_is_owed(clock: Clock) -> None:
    breaker, owed = Breaker(recovery=0, clock=clock), ["debt"]
    breaker.trip("lost")
    assert breaker.due()
    assert not breaker.close(unless=lambda: owed)
    assert breaker.state == "half_open"
    owed.clear()
    assert breaker.close(unless=lambda: owed)
    assert breaker.close(), "closing what is closed is fine"


def test_observer_is_told_and_cannot_break_anything(clock: Clock) -> None:
    seen: list[Event] = []

    def observer(event: Event) -> None:
        seen.append(event)
        raise RuntimeError("of the observer's own")

    breaker = Breaker(recovery=0, clock=clock, observer=observer)
    breaker.trip("timeout")
    breaker.due()
    breaker.close()
    assert [(event.kind, event.detail) for event in seen] == [
        ("breaker", "open timeout"),
        ("breaker", "half_open"),
        ("breaker", "closed"),
    ]


def test_one_of_many_threads_probes(clock: Clock) -> None:
    breaker = Breaker(recovery=0, clock=clock)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            breaker.trip("lost")
            assert sum(pool.map(lambda _: breaker.due(), range(32))) == 1
            assert breaker.close()


def test_old_changes_are_dropped_and_it_says_its_state(clock: Clock) -> None:
    breaker = Breaker(recovery=0, clock=clock)
    for _ in range(200):
        breaker.trip("lost")
        breaker.due()
    assert len(breaker.changes) == 100
    assert repr(breaker) == "<Breaker half_open>"
