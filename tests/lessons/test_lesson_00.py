"""Lesson 00: the starter, the solution, and each wrong greeting with a sentence of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit import Lab
from labkit.blog import create_app
from tests.lessons.judging import Notebook


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    data: Path = tmp_path_factory.mktemp("blog")
    with Lab(create_app(data_folder=data), redis=False, latency=0) as lab:
        yield Notebook("00_start", lab, {"0.1": "hello"})


def test_nothing_handed_in_is_to_do(notebook: Notebook) -> None:
    assert notebook.judge("0.1", None).state == ("todo", "course.missing")


def test_the_untouched_starter_shows_its_trap(notebook: Notebook) -> None:
    judged = notebook.check("0.1", notebook.text("0.1"))
    assert judged.state == ("todo", "hello_same")
    assert judged.card.counts == {"names": 4, "different": 1}


def test_the_solution_is_done_and_replaces_what_came_before(notebook: Notebook) -> None:
    notebook.check("0.1", notebook.text("0.1"))
    assert notebook.check("0.1", notebook.text("0.1", "solution")).state == ("done", "hello_done")


WRONG = [
    ("no f", "hello_no_f", ('f"Hola', '"Hola')),
    ("no comma", "hello_body", ("Hola, {", "Hola {")),
    ("the name in capitals", "hello_body", ("Hola, {name}", "Hola, {name.title()}")),
    ("another key", "hello_shape", ('"message"', '"mensaje"')),
    ("one key more", "hello_shape", ('"}', '", "ok": True}')),
    ("a text instead of an object", "hello_shape", ('{"message": f"Hola, {name}"}', 'f"Hola, {name}"')),
    ("only one name", "hello_same", ("Hola, {name}", "Hola, Ana")),
    ("another path", "hello_status", ("/hello/", "/hola/")),
    ("another name in the path", "hello_parameter", ("/{name}", "/{nombre}")),
    ("a number in the path", "hello_parameter", ("name: str", "name: int")),
    ("another method", "hello_method", ("app.get", "app.post")),
    ("printed, not returned", "hello_nothing", ('return {"message": f"Hola, {name}"}', "name.upper()")),
    ("no decorator", "hello_not_declared", ("@lab.app", "# @lab.app")),
]


@pytest.mark.parametrize(("swap", "key"), [pytest.param(w[2], w[1], id=w[0]) for w in WRONG])
def test_each_wrong_greeting_has_a_sentence_of_its_own(swap: tuple[str, str], key: str, tmp_path: Path) -> None:
    with Lab(create_app(data_folder=tmp_path), redis=False, latency=0) as lab:  # no route left from another test
        notebook = Notebook("00_start", lab, {"0.1": "hello"})
        judged = notebook.check("0.1", notebook.version("0.1", swap))
    assert judged.state == ("almost", key)


def test_an_exception_shows_her_line(notebook: Notebook) -> None:
    judged = notebook.check("0.1", notebook.version("0.1", ("Hola, {name}", "Hola, {nombre}")))
    assert judged.state == ("error", "course.endpoint_raised")
    assert "nombre" in judged.card.code and "site-packages" not in judged.card.code
    assert 'return {"message"' in judged.card.code


def test_an_endpoint_that_hangs_ends_with_a_sentence(tmp_path: Path) -> None:
    with Lab(create_app(data_folder=tmp_path), redis=False, latency=0, time_limit=0.5) as lab:
        notebook = Notebook("00_start", lab, {"0.1": "hello"})
        swap = ("    return", "    import time\n    while True:\n        time.sleep(0.01)\n    return")
        judged = notebook.check("0.1", notebook.version("0.1", swap))
        assert judged.card.verdict == "error"
        lab.time_limit = 60.0  # from which the check takes its own limit; on a busy machine half a second is short
        assert notebook.check("0.1", notebook.text("0.1", "solution")).state == ("done", "hello_done")


def test_a_function_of_labkit_is_not_hers(notebook: Notebook) -> None:
    assert notebook.judge("0.1", create_app).state == ("almost", "course.not_yours")
