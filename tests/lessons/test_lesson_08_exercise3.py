"""The trap gallery, Exercise 3: each trap shows on this machine, in counts, and its cure cures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import psutil
import pytest

from labkit.course.checks import Verdict
from labkit.course.lessons import _traps_3_middleware, _traps_3_probes, _traps_3_workers
from labkit.course.trapcard import TrapCard
from tests.lessons.leafing import Leafing


@pytest.fixture(scope="module")
def gallery() -> Iterator[Leafing]:
    leafing = Leafing(3)
    yield leafing
    leafing.close()


def numbers(card: TrapCard) -> tuple[str, float, float]:
    return card.state, card.found.trap, card.found.cure


COUNTS = {"T49": (0, 1), "T51": (10, 0), "T55": (5, 0), "T58": (5, 0)}
CARDS = [*COUNTS, "T50", "T53", "T56"]


@pytest.mark.parametrize("id", COUNTS)
def test_the_trap_shows_and_its_cure_works(gallery: Leafing, id: str) -> None:
    assert numbers(gallery.card(id)) == ("cured", *COUNTS[id])


def test_a_stream_is_timed_to_its_head_or_to_its_last_byte(gallery: Leafing) -> None:
    card = gallery.card("T50")
    assert card.state == "cured"
    assert card.found.trap < 50 < card.found.cure


def test_a_layer_that_does_nothing_needs_a_task_of_its_own(gallery: Leafing) -> None:
    card = gallery.card("T53")
    assert card.state == "cured"
    assert card.found.values == {"tasks": 1, "cure_tasks": 0}
    assert logging.getLogger("labkit.http").level != logging.WARNING


def test_two_workers_count_each_for_itself_or_together(gallery: Leafing) -> None:
    children = psutil.Process().children(recursive=True)
    card = gallery.card("T56")
    assert numbers(card) == ("cured", 0, 10)
    assert card.found.values["sent"] > 40
    assert psutil.Process().children(recursive=True) == children


@pytest.mark.parametrize("id", [*COUNTS, "T50", "T53"])
def test_who_mends_the_code_is_told_so(gallery: Leafing, id: str) -> None:
    assert gallery.card(id, role="solution").state == "avoided"


# Other ways out of a trap, and half ways, that learners find.
CHANGES = [
    ("T49", ('Info("app_info"', 'Info("app"'), "avoided", 1),
    ("T55", ('PROBE = "/health"', 'PROBE = "/health/"'), "avoided", 0),
    ("T58", ("async def probe():", "async def probe():\n        return 'healthy'"), "avoided", 0),
]


@pytest.mark.parametrize(("id", "swap", "state", "trap"), CHANGES)
def test_changed_code_is_measured_as_it_is(
    gallery: Leafing, id: str, swap: tuple[str, str], state: str, trap: float
) -> None:
    assert numbers(gallery.card(id, swap))[:2] == (state, trap)


def instrument_badly(app: object) -> None:
    raise RuntimeError("no such instrument")


def test_an_application_that_does_not_start_shows_why() -> None:
    with pytest.raises(Verdict) as raised:
        _traps_3_workers._totals({}, instrument_badly)
    assert (raised.value.key, raised.value.counts["code"]) == ("course.raised", "RuntimeError: no such instrument")


def test_the_sentences_say_what_was_measured(gallery: Leafing) -> None:
    """The measured words themselves, and the numbers besides those of the bars."""
    assert "`app_info_info`" in repr(gallery.card("T49"))
    assert gallery.card("T51").found.values == {"clients": 10, "gone": 10}
    assert "307" in repr(card := gallery.card("T55")) and "503" in repr(card)
    assert gallery.card("T58").found.values["answered"] == 0


def test_nothing_stays(gallery: Leafing, capsys: pytest.CaptureFixture[str]) -> None:
    """No thread, no child, nothing on the screen."""

    def left() -> tuple[object, ...]:
        return sorted(thread.name for thread in threading.enumerate()), psutil.Process().children(recursive=True)

    before = left()
    for id in (*COUNTS, "T50", "T53"):
        gallery.card(id)
    assert left() == before
    assert capsys.readouterr() == ("", "")


def test_there_is_a_measurement_for_each_card() -> None:
    modules = _traps_3_middleware, _traps_3_probes, _traps_3_workers
    measured = [name.upper() for module in modules for name in vars(module) if name[0] == "t" and name[1:].isdigit()]
    assert sorted(measured) == sorted(CARDS)
