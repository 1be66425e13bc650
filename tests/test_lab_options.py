"""What cannot be sent is explained before the application sees it: the thing, its value, what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from labkit import Lab
from labkit.errors import AppError, RequestError
from tests.labs import plain


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(plain()) as lab:
        yield lab


@pytest.mark.parametrize(
    ("path", "options", "says"),
    [
        (3, {}, r"La ruta 3 no empieza con «/»"),
        ("/method", {"json": {1, 2}}, r"json=\{1, 2\} no se puede escribir como JSON: .*set.*Pasa diccionarios"),
        ("/method", {"headers": [("a", "b")]}, r"headers=\[\('a', 'b'\)\] no sirve: pasa un diccionario.*headers=\{'"),
        ("/method", {"cookies": "x"}, r"cookies='x' no sirve: pasa un diccionario"),
        ("/method", {"params": "a=b"}, r"params='a=b' no sirve: pasa un diccionario"),
        ("/method", {"params": 3}, r"params=3 no sirve"),
        ("/method", {"body": 3}, r"body=3 no sirve: pasa bytes o texto"),
        ("/method", {"headers": {"a": "☃"}}, r"encabezado 'a': '☃' no se puede enviar.*quote"),
        ("/method", {"headers": {3: "b"}}, r"encabezado 3: 'b' no se puede enviar"),
    ],
)
def test_what_cannot_be_sent_is_explained(lab: Lab, path: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        lab.post(path, **options)
    assert lab.post("/method", params=[("a", 1)], headers={"n": 3}, body=bytearray(b"x")).json == "POST"


def test_a_job_that_is_none_is_explained(lab: Lab) -> None:
    with pytest.raises(RequestError, match=r"función async, y esta devolvió 3: escribe"):
        lab.run(lambda client: 3)  # type: ignore[arg-type,return-value]


def test_what_is_no_application_is_named() -> None:
    for thing, says in ((5, "«5» es int"), (json, "«json» es module"), (plain, "«plain» es una función")):
        with pytest.raises(AppError, match=says):
            Lab(thing)  # type: ignore[arg-type]
