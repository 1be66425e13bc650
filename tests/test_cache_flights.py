"""Flights: who shares what with whom inside one process."""

from __future__ import annotations

from concurrent.futures import Future

from labkit.cache.flights import Flights, Landed


def seat() -> Future[Landed]:
    return Future()


def test_the_first_leads_and_the_others_sit() -> None:
    flights = Flights()
    flight, mine = flights.enter("k", None, seat)
    again, theirs = flights.enter("k", None, seat)
    assert mine is None and again is flight and not theirs.done()
    flights.land(flight, Landed(b"found"))
    assert theirs.result().found == b"found"
    other, mine = flights.enter("k", None, seat)
    assert mine is None and other is not flight and other.born > flight.born


def test_callers_of_another_loop_lead_their_own() -> None:
    flights = Flights()
    dead, alive = object(), object()
    left, _ = flights.enter("k", dead, seat)
    flight, mine = flights.enter("k", alive, seat)
    assert mine is None and flight is not left
    flights.land(left, Landed())  # and the end of one does not end the other
    assert flights.enter("k", alive, seat)[0] is flight


def test_nobody_joins_a_detached_flight() -> None:
    flights = Flights()
    flight, _ = flights.enter("k", None, seat)
    _, joined = flights.enter("k", None, seat)
    flights.detach("k", "unknown")
    assert flights.enter("k", None, seat)[1] is None
    flights.land(flight, Landed(b"x"))
    assert joined.result().found == b"x"
    flights.detach_all()
    assert flights.enter("k", None, seat)[1] is None


def test_a_flight_is_handed_to_the_first_who_still_waits() -> None:
    flights = Flights()
    flight, _ = flights.enter("k", None, seat)
    gone, first, second = (flights.enter("k", None, seat)[1] for _ in range(3))
    gone.cancel()
    assert flights.hand_over(flight)
    assert first.result().heir and not second.done()
    assert flights.hand_over(flight) and second.result().heir
    assert not flights.hand_over(flight)  # nobody is left: it has ended
    assert flights.enter("k", None, seat)[1] is None
