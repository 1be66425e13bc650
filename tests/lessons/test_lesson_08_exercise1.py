"""The trap gallery, Exercise 1: each trap shows on this machine, in counts, and its cure cures."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from tests.lessons.leafing import Leafing

NEW_PROFILER = sys.version_info >= (3, 12)
QUICK = ["T03", "T08", "T13", "T14", "T16", "T17", "T18", "T19", "T21", "T59", "T60"]


@pytest.fixture(scope="module")
def gallery() -> Iterator[Leafing]:
    leafing = Leafing(1, 2, 3)  # cards are run in any order: also after the imports of the other exercises
    yield leafing
    leafing.close()


def test_two_profiles_at_once(gallery: Leafing) -> None:
    card = gallery.card("T03")
    assert (card.state, card.found.cure) == ("cured", 10)
    if NEW_PROFILER:
        assert (card.found.says, card.found.trap, card.found.values["failed"]) == ("effect", 1, 9)
    else:
        assert (card.found.says, card.found.values["failed"]) == ("mixed", 0)
        assert card.found.trap < 10
        assert card.found.values["foreign"] > 20


def test_a_profiler_slows_down_what_it_times(gallery: Leafing) -> None:
    card = gallery.card("T05")
    assert card.found.shown and card.found.trap > 1.15
    assert card.found.cure < card.found.trap
    assert 0 < card.found.values["unseen"] < 1


def test_a_synchronous_query_stops_the_loop(gallery: Leafing) -> None:
    card = gallery.card("T08")
    assert card.state == "cured"
    assert card.found.trap == 0 < 5 < card.found.cure
    assert card.found.picture is not None


def test_without_an_order_two_queries_show_different_users(gallery: Leafing) -> None:
    card = gallery.card("T12")
    assert card.state == "cured"
    assert card.found.trap < 50 == card.found.cure
    told = card.found.table
    assert told is not None and len(told) == 2
    assert all("LIMIT" in query and "ORDER BY" not in query for query in told.iloc[:, 1]), "pg_stat_activity tells"


def test_whole_rows_and_a_join_bring_three_times_the_values(gallery: Leafing) -> None:
    card = gallery.card("T13")
    assert (card.state, card.found.trap, card.found.cure) == ("cured", 9_000, 3_000)


def test_count_costs_the_database_the_same(gallery: Leafing) -> None:
    card = gallery.card("T14")
    assert card.state == "myth"
    assert 0.9 < card.found.trap < 1.1
    slow = gallery.card("T14", (".count()", ".order_by(Comment.body).all().__len__()"))
    assert (slow.state, slow.found.says) == ("cured", "effect"), "a count that is slow indeed is no myth"


def test_grouping_first_costs_less_than_the_missing_index(gallery: Leafing) -> None:
    card = gallery.card("T16")
    assert card.state == "myth"
    assert card.found.trap < 1.5 < 3 < card.found.cure


def test_the_decorator_breaks_plain_endpoints(gallery: Leafing) -> None:
    card = gallery.card("T17")
    assert (card.state, card.found.trap, card.found.cure) == ("cured", 5, 0)


def test_a_profile_holds_the_calls_of_another_thread(gallery: Leafing) -> None:
    card = gallery.card("T18")
    expected = ("cured", 200, "effect") if NEW_PROFILER else ("absent", 0, "absent")
    assert (card.state, card.found.trap, card.found.says) == expected
    assert card.found.cure == 0
    assert sys.getprofile() is None


def test_a_clock_that_is_put_back_makes_a_duration_negative(gallery: Leafing) -> None:
    card = gallery.card("T19")
    assert card.state == "cured"
    assert -2 < card.found.trap < 0 < card.found.cure


def test_connections_held_while_waiting_run_out(gallery: Leafing) -> None:
    card = gallery.card("T21")
    assert (card.state, card.found.trap, card.found.cure) == ("cured", 6, 0)


def test_two_reports_are_formatted_for_nobody(gallery: Leafing) -> None:
    card = gallery.card("T59")
    assert (card.state, card.found.cure) == ("cured", 0)
    assert card.found.trap > 10_000


def test_the_total_is_the_page(gallery: Leafing) -> None:
    card = gallery.card("T60")
    assert (card.state, card.found.trap, card.found.cure) == ("cured", 50, 300)


def test_eager_loading_reads_every_comment(gallery: Leafing) -> None:
    card = gallery.card("T63")
    assert (card.state, card.found.cure) == ("cured", 100)
    assert card.found.trap > 5_000 * 5


@pytest.mark.parametrize("id", QUICK)
def test_the_corrected_code_does_not_fall_into_the_trap(gallery: Leafing, id: str) -> None:
    """A learner who mends the cell herself is told so; and no card leaves a route or a thread behind."""
    before, routes = set(threading.enumerate()), list(gallery.namespace["lab"].app.routes)
    card = gallery.card(id, role="solution")
    assert card.state in ({"myth"} if id in ("T14", "T16") else {"avoided", "absent"})
    assert list(gallery.namespace["lab"].app.routes) == routes
    left = {thread.name for thread in set(threading.enumerate()) - before if not thread.name.startswith("AnyIO worker")}
    assert left == set()


def test_an_endpoint_that_fastapi_refuses_is_told_in_its_words(gallery: Leafing) -> None:
    card = gallery.any("T08", ("db: Session = Depends(get_db)", "db: Session"))
    assert "T08 · " in repr(card) and "Session" in repr(card) and "Invalid args" in repr(card)


def test_what_raises_in_her_cell_is_a_card_with_her_line(gallery: Leafing) -> None:
    card = gallery.any("T60", ("len(users)", "len(user)"))
    assert "NameError" in repr(card) and "len(user)" in repr(card)
    assert "T60 · " in repr(card)
