"""The gallery's cards: guess, trap and cure side by side, whatever the learner made of the cell."""

from __future__ import annotations

import ast
import time
import tomllib
from importlib.resources import files
from typing import Any

import pytest

from labkit.course import gallery as module
from labkit.course.cards import Card
from labkit.course.checks import Context
from labkit.course.exercises import Outline
from labkit.course.gallery import Gallery, open_gallery
from labkit.course.lessons import lesson_08
from labkit.course.markers import words
from labkit.course.sources import read_source
from labkit.course.trapcard import Found, TrapCard, judged
from labkit.errors import CourseError
from tests.cells import run
from tests.lessons.leafing import SOURCE

CURE = "def page(db):\n    return sorted(db)[:limit]\n\n\ngallery.card('T60', page, guess=7)"
PLACES = {1: {"T04": "01", "T60": ""}}
LEAFING = {cell.name: cell for cell in read_source(SOURCE).cells}


def t60(ctx: Context, trap: Any, cure: Any) -> Found:
    """How far the first value of a page is from the least."""
    return judged(ctx.call(trap, [3, 1, 2])[0] - 1, ctx.call(cure, [3, 1, 2])[0] - 1, bad=lambda n: n > 0, users=3)


@pytest.fixture
def gallery() -> Gallery:
    return Gallery(Outline("08_trap_gallery", 0, {}, (), {"T60": CURE}), {"T60": t60}, PLACES)


@pytest.fixture
def notebook(gallery: Gallery) -> dict[str, Any]:
    return {"gallery": gallery, "limit": 2}


def ask(notebook: dict[str, Any], body: str, call: str = "gallery.card('T60', page, guess=7)") -> Any:
    return run(f"def page(db):\n    {body}\n\n\ncard = {call}", notebook)["card"]


def test_a_card_shows_guess_trap_and_cure(notebook: dict[str, Any]) -> None:
    card = ask(notebook, "return db[:limit]")
    assert isinstance(card, TrapCard)
    assert (card.guess, card.found.trap, card.found.cure, card.state) == (7, 2, 0, "cured")
    assert card.code == "def page(db):\n    return sorted(db)[:limit]", "what is shown is what ran, without the call"
    assert list(card.df.iloc[:, 1]) == [7, 2, 0]
    said, shown = repr(card), card._repr_html_()
    for text in ("T60", "7", "2", "sorted(db)"):
        assert text in said and text in shown
    assert "<details>" in shown


def test_the_cure_runs_in_a_copy_of_the_notebook(notebook: dict[str, Any]) -> None:
    card = ask(notebook, "return db[:limit]")
    assert card.found.cure == 0, "it saw limit, which the notebook has"
    assert notebook["page"]([3]) == [3] and notebook["page"].__code__.co_filename != "<cure T60>"
    assert isinstance(notebook["gallery"], Gallery)


def test_mended_code_is_told_so(notebook: dict[str, Any]) -> None:
    card = ask(notebook, "return sorted(db)")
    assert card.state == "avoided"
    assert "0" in card.paragraphs[0][1]


@pytest.mark.parametrize(
    ("shown", "cured", "says", "state"),
    [
        (True, True, "effect", "cured"),
        (True, False, "effect", "open"),
        (False, True, "effect", "avoided"),
        (False, True, "myth", "myth"),
        (False, True, "absent", "absent"),
    ],
)
def test_the_state_says_what_was_found(shown: bool, cured: bool, says: str, state: str) -> None:
    values = {"version": "3.11", "foreign": 200}
    found = Found(1.0, 1.0, shown, cured, values, says=says)
    id = "T14" if says == "myth" else "T18"
    card = TrapCard(id, "lesson_08_1", None, found, "")
    assert card.state == state
    assert "–" in repr(card), "no guess was made"
    assert card._repr_html_().count("<tr") == 3


@pytest.mark.parametrize("guess", ["many", True, None, ...])
def test_a_guess_that_is_no_number_is_none(notebook: dict[str, Any], guess: object) -> None:
    card = ask(notebook | {"guess": guess}, "return db", "gallery.card('T60', page, guess=guess)")
    assert card.guess is None


def test_what_she_wrote_is_escaped(notebook: dict[str, Any]) -> None:
    card = ask(notebook, "return ['<b>' + 1]")
    assert isinstance(card, Card) and "<b>" not in card._repr_html_().split("<pre")[1]


def test_an_exception_is_a_card_with_her_line(notebook: dict[str, Any]) -> None:
    card = ask(notebook, "return db[1 / 0]")
    assert isinstance(card, Card) and card.verdict == "error"
    assert "db[1 / 0]" in card.code and card.title.startswith("T60 · ")


def test_what_hangs_is_ended(notebook: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 0.3)
    begin = time.monotonic()
    card = ask(notebook, "while True: pass")
    assert isinstance(card, Card) and card.verdict == "error"
    assert time.monotonic() - begin < 5


def test_a_card_that_is_not_there_is_named_with_those_there_are(notebook: dict[str, Any]) -> None:
    card = ask(notebook, "return db", "gallery.card('T99', page)")
    assert isinstance(card, Card) and "T99" in card.message and "T60" in card.message


def test_the_gallery_lists_what_was_seen(notebook: dict[str, Any], gallery: Gallery) -> None:
    assert "0" in repr(gallery) and "<table" not in gallery._repr_html_()
    ask(notebook, "return db")
    assert list(gallery.df["id"]) == ["T60"] and "T60 · " in gallery._repr_html_()


def test_the_map_shows_every_trap_once(gallery: Gallery) -> None:
    figure = gallery.map()
    assert figure.table is not None and list(figure.table.iloc[:, 1]) == ["T04", "T60"]
    assert len(figure.alt.split()) >= 5


def test_an_unknown_gallery_is_refused() -> None:
    with pytest.raises(CourseError, match="98_none"):
        open_gallery("98_none")


# --- the gallery as it is

GALLERY = open_gallery("08_trap_gallery")
CARDS = [(id, exercise) for exercise, traps in lesson_08.PLACES.items() for id in traps if id in GALLERY.plan.cures]


def test_every_card_has_its_measurement_and_its_place() -> None:
    known = {id for traps in lesson_08.PLACES.values() for id in traps}
    assert GALLERY.plan.cures.keys() == lesson_08.measures().keys() <= known


@pytest.mark.parametrize(("id", "exercise"), CARDS, ids=[id for id, _ in CARDS])
def test_a_cards_words_are_there_and_few(id: str, exercise: int) -> None:
    path = files("labkit.course") / "messages" / f"lesson_08_{exercise}.toml"
    entries = {
        key.partition("_")[2]: entry
        for key, entry in tomllib.loads(path.read_text(encoding="utf-8")).items()
        if key.partition("_")[0] == id.lower()
    }
    assert entries.keys() >= {"name", "unit", "effect", "cause", "cure"}
    for key, entry in entries.items():
        most = 12 if key in ("name", "unit") or key.endswith("label") else 45
        assert all(words([text]) <= most for text in entry.values()), (id, key)


@pytest.mark.parametrize(("id", "exercise"), CARDS, ids=[id for id, _ in CARDS])
def test_a_cell_ends_with_its_own_card(id: str, exercise: int) -> None:
    for cell in (LEAFING[id].edition("starter") or "", GALLERY.plan.cures[id]):
        call = ast.parse(cell).body[-1]
        assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
        assert ast.unparse(call.value).startswith(f"gallery.card('{id}', ")
        assert [word.arg for word in call.value.keywords] == ["guess"]
    assert f"{id}-text" in LEAFING
