"""The trap gallery, Exercise 2: each trap shows on this machine, in counts, and its cure cures."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from labkit.course.cards import Card
from labkit.course.lessons import _traps_2_keys, _traps_2_values, _traps_2_waiting
from labkit.course.trapcard import TrapCard
from tests.lessons.leafing import Leafing


@pytest.fixture(scope="module")
def gallery() -> Iterator[Leafing]:
    leafing = Leafing(2)
    yield leafing
    leafing.close()


def numbers(card: TrapCard) -> tuple[str, float, float]:
    return card.state, card.found.trap, card.found.cure


# What is left to chance (the addresses of T24) or to the machine's load (T41) is not here.
COUNTS = {
    "T27": (6, 0),
    "T28": (6, 1),
    "T29": (6, 0),
    "T30": (0, 3),
    "T31": (3, 0),
    "T32": (100, 1),
    "T34": (10, 0),
    "T37": (5, 0),
    "T38": (400_000, 10),
    "T40": (20, 0),
    "T42": (10, 0),
    "T61": (9, 0),
}
CARDS = [*COUNTS, "T24", "T41"]


@pytest.mark.parametrize("id", COUNTS)
def test_the_trap_shows_and_its_cure_works(gallery: Leafing, id: str) -> None:
    assert numbers(gallery.card(id)) == ("cured", *COUNTS[id])


def test_an_address_that_is_used_again_makes_a_stale_hit(gallery: Leafing) -> None:
    card = gallery.card("T24")
    assert card.state == "cured"
    assert 0 < card.found.trap <= 60
    assert card.found.cure == 0


def test_a_client_that_blocks_stops_every_request(gallery: Leafing) -> None:
    card = gallery.card("T41")
    assert card.state == "cured"
    assert card.found.trap == 0 < card.found.cure


@pytest.mark.parametrize("id", CARDS)
def test_who_mends_the_code_is_told_so(gallery: Leafing, id: str) -> None:
    assert gallery.card(id, role="solution").state == "avoided"


# Other ways out of a trap, and half ways, that learners find.
CHANGES = [
    ("T24", (':{db}"', '"'), ('{user_id}:None"', '{user_id}"'), "avoided", 0),
    ("T27", ("map(str, args)", "map(repr, args)"), "cured", 1),  # only the namesakes are left
    ("T28", ("hash(str(filters))", "filters"), "avoided", 1),
    ("T29", ("json.dumps(value, default=str)", "repr(value)"), ("json.loads", "eval"), "error", None),
    ("T30", ("json.dumps(user, default=str)", 'json.dumps({"id": user.id})'), "cured", 1),
    ("T31", ("pickle.loads(value)", "None"), "avoided", 0),
    ("T34", ("return json.loads(found)", 'return json.loads(found) | {"cached": True}'), "avoided", 0),
    ("T37", ("lab.redis.url)", "lab.redis.url, socket_timeout=0.1, retry=None)"), "avoided", 0),
    ("T38", (")).one()", ")).filter(User.id == Post.author_id, Post.id == Comment.post_id).one()"), "cured", 400),
    ("T42", ('json.dumps(rates["EUR"])', 'json.dumps(rates["EUR"], allow_nan=False)'), "cured", 5),
    ("T61", ("json.dumps(answer, default=str)", "json.dumps(answer.body.decode())"), "cured", 9),
]


@pytest.mark.parametrize(("id", "swaps", "state", "trap"), [(c[0], c[1:-2], *c[-2:]) for c in CHANGES])
def test_changed_code_is_measured_as_it_is(
    gallery: Leafing, id: str, swaps: list[tuple[str, str]], state: str, trap: float | None
) -> None:
    card = gallery.any(id, *swaps)
    if isinstance(card, Card):
        assert (card.verdict, trap) == (state, None)
    else:
        assert (card.state, card.found.trap) == (state, trap)


def test_code_that_fails_in_other_processes_shows_why(gallery: Leafing) -> None:
    card = gallery.any("T28", ("hash(str(filters))", "sorted(nothing)"))
    assert isinstance(card, Card)
    assert card.verdict == "error"
    assert "NameError" in card.code


def test_the_sentences_say_what_was_measured(gallery: Leafing) -> None:
    """The measured words themselves, and the numbers besides those of the bars."""
    assert "`Decimal('9.90')`" in repr(card := gallery.card("T29")) and "`'9.90'`" in repr(card)
    assert "`<labkit.blog.models.User object at 0x…>`" in repr(gallery.card("T30"))
    assert gallery.card("T34").found.values["times"] == 1
    assert gallery.card("T42").found.values == {"zero": 5, "nan": 5, "visits": 10}
    assert "`<starlette.responses.Response object at 0x…>`" in repr(gallery.card("T61"))


def test_the_cause_that_names_the_refusal_is_true(gallery: Leafing) -> None:
    card = gallery.any(
        "T30", ('{"id": user.id, "username": user.username, "email": user.email}', "user"), role="solution"
    )
    assert isinstance(card, Card) and "User" in card.message


def test_nothing_stays(gallery: Leafing) -> None:
    """The Lab's application, its Redis and this process are as before when each card was seen once more."""
    lab = gallery.namespace["lab"]

    def left() -> tuple[object, ...]:
        keys = sorted(gallery.namespace["store"].scan_iter("*t[2-6][0-9]*"))
        routes = [getattr(route, "path", None) for route in lab.app.router.routes]
        return keys, routes, lab.get("/cached/users/7").status, sorted(t.name for t in threading.enumerate())

    before = left()
    for id in CARDS:
        gallery.card(id)
    assert left() == before
    assert not [route for route in lab.app.router.routes if "gallery" in getattr(route, "path", "")]


def test_there_is_a_measurement_for_each_card() -> None:
    measured = [
        name.upper()
        for m in (_traps_2_keys, _traps_2_values, _traps_2_waiting)
        for name in vars(m)
        if name[0] == "t" and name[1:].isdigit()
    ]
    assert sorted(measured) == sorted(CARDS)
