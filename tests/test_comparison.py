"""comparison: the same answer first, then statements, then time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, Response
from hypothesis import given
from hypothesis import strategies as st

from labkit import stats
from labkit.asgi import Reply
from labkit.blog import create_app
from labkit.comparison import Comparison, Difference, compare_endpoints, first_difference
from labkit.faults import RoundTrip
from labkit.lab import Lab

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def reply(body: Any, status: int = 200, elapsed: float = 0.01, queries: int = 0, error: str = "") -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, raw, (), elapsed, queries, "GET /x", error)


class Client:
    """Answers from a table; what an answer took is what it says."""

    def __init__(self, **answers: Reply) -> None:
        self.answers, self.calls, self.trip = answers, list[str](), RoundTrip(0.5)

    async def call(self, method: str, path: str) -> Reply:
        self.calls.append(path)
        return self.answers[path.strip("/")]


def compare(client: Client, **options: Any) -> Comparison:
    return anyio.run(lambda: compare_endpoints(client, "/a", "/b", seed=1, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("a", "b", "path", "shown"),
    [
        ({"x": 1}, {"x": 2}, "x", ("1", "2")),
        ({"x": 1}, {}, "x", ("1", "(no está)")),
        ({}, {"x": None}, "x", ("(no está)", "null")),
        ({"u": [{"p": [{"n": 3}]}]}, {"u": [{"p": [{}]}]}, "u[0].p[0].n", ("3", "(no está)")),
        ([1, 2], [1, 2, 3], "[2]", ("(no está)", "3")),
        ([[1], [2]], [[1], [9]], "[1][0]", ("2", "9")),
        ([1], {"0": 1}, "$", ("[1]", '{"0": 1}')),
        ({"n": 1}, {"n": True}, "n", ("1", "true")),
        ({"n": "1"}, {"n": 1}, "n", ('"1"', "1")),
        ({"a b": {"ñ": 1}}, {"a b": {"ñ": 2}}, '["a b"].ñ', ("1", "2")),
        ({"a": 1, "b": 2}, {"b": 3, "a": 4}, "a", ("1", "4")),
        ({"t": "á" * 90}, {"t": ""}, "t", ('"' + "á" * 58 + "…", '""')),
    ],
)
def test_the_first_difference_is_a_place_and_both_values(a: Any, b: Any, path: str, shown: tuple[str, str]) -> None:
    assert first_difference(reply(a), reply(b)) == Difference(path, *shown)


def test_equal_json_may_be_written_differently() -> None:
    assert first_difference(reply(b'{"a":1,"b":[2.0]}'), reply(b'{ "b": [2], "a": 1 }')) is None
    assert first_difference(reply(b"[NaN, 1]"), reply(b"[NaN,1]")) is None


def test_what_is_not_json_is_compared_as_bytes_and_status_comes_first() -> None:
    assert first_difference(reply(b"hola mundo"), reply(b"hola mundo")) is None
    assert first_difference(reply(b"hola mundo"), reply(b"hola nada")) == Difference("byte 5", "'mundo'", "'nada'")
    assert first_difference(reply(b"hola"), reply(b"hol")) == Difference("byte 3", "'a'", "''")
    assert first_difference(reply([]), reply([], 404)) == Difference("status", "200", "404")


@given(JSON, JSON)
def test_a_difference_is_found_exactly_where_json_differs(a: Any, b: Any) -> None:
    assert first_difference(reply(a), reply(a)) is None
    same = json.loads(json.dumps(a, sort_keys=True)) == json.loads(json.dumps(b, sort_keys=True))
    found = first_difference(reply(a), reply(b))
    if not same:
        assert found is not None and found.path
    if found is None:
        assert same


def test_a_comparison_gives_statements_ratio_and_the_saving_that_is_certain() -> None:
    client = Client(a=reply([1], elapsed=0.4, queries=1051), b=reply([1], elapsed=0.01, queries=2))
    found = compare(client)
    assert (found.same_body, found.difference) == (True, None)
    assert (found.statements_a, found.statements_b) == (1051, 2)
    assert (found.verdict, found.latency_ms) == ("faster", 0.5)
    assert found.low == pytest.approx(40) and found.ratio == pytest.approx(40)
    assert found.improvement == pytest.approx(1 - 1 / found.low)
    assert found.says == "1.051 consultas → 2 · 40 veces más rápido (40–40)"
    one = compare(Client(a=reply([1], queries=1), b=reply([1], queries=1)))
    assert one.says.startswith("1 consulta → 1") and "consultas: 1 " in one._repr_html_()
    assert client.calls.count("/a") == 1 + found.timing.pairs, "the calls that compared the answers warmed up"
    assert found.df["statements"].tolist() == [1051, 2]
    assert found.df["median_s"].tolist() == pytest.approx([0.4, 0.01])


def test_the_figure_says_the_finding_and_that_latency_was_simulated() -> None:
    figure = compare(Client(a=reply([1], elapsed=0.4, queries=1051), b=reply([1], queries=2))).plot()
    assert figure.get_suptitle().startswith("1.051 consultas → 2 · 40 veces")
    assert [ax.get_xlabel() for ax in figure.axes] == [
        "consultas",
        "tiempo por petición\n(con 0,5 ms simulados por consulta)",
    ]
    assert len(figure.alt.split()) >= 5 and figure.png().startswith(b"\x89PNG")
    client = Client(a=reply([1]), b=reply([1]))
    client.trip = RoundTrip(0)
    assert compare(client).plot().axes[1].get_xlabel() == "tiempo por petición"


def test_a_different_answer_is_said_before_anything_else_yet_measured() -> None:
    found = compare(Client(a=reply({"n": "<3>"}, elapsed=0.2), b=reply({}, elapsed=0.1)))
    assert (found.same_body, found.verdict) == (False, "faster")
    assert repr(found).splitlines()[:2] == [
        "▲ No es la misma respuesta · 0 consultas → 0 · 2,0 veces más rápido (2,0–2,0)",
        'n: "<3>" → (no está)',
    ]
    html = found._repr_html_()
    assert html.index("No es la misma respuesta") < html.index("La primera diferencia") < html.index("&lt;3&gt;")


def test_an_error_is_not_timed_for_failing_fast_is_not_being_fast() -> None:
    client = Client(a=reply([1]), b=reply([], 500, 0.001, error="KeyError: 'id'\ncelda [5], línea 6"))
    found = compare(client)
    assert client.calls == ["/a", "/b"]
    assert (found.same_body, found.verdict, found.timing.pairs) == (False, "inconclusive", 0)
    assert (found.improvement, found.low, found.high) == (0.0, 0.0, math.inf)
    assert "No se puede comparar" in repr(found) and "celda [5]" in repr(found)
    assert "KeyError: &#x27;id&#x27;" in found._repr_html_()
    assert [text.get_text() for text in found.plot().axes[1].texts] == ["—", "—"], "what was not measured is not 0"
    assert found.plot().png() and math.isnan(found.df["median_s"][0])
    both = compare(Client(a=reply([], 404), b=reply([], 404)))
    assert both.verdict == "inconclusive" and "No se puede comparar" in repr(both)


def test_what_takes_longer_than_the_limit_is_inconclusive() -> None:
    found = compare(Client(a=reply([1], elapsed=0.4), b=reply([1], elapsed=0.01)), seconds=1e-9)
    assert (found.verdict, found.improvement) == ("inconclusive", 0.0)
    assert "no concluyente: ×40, 1 de los 6" in repr(found)


def test_slower_and_equal_are_said_as_such() -> None:
    assert "4,0 veces más lento" in compare(Client(a=reply(1), b=reply(1, elapsed=0.04))).says
    equal = compare(Client(a=reply(1), b=reply(1)))
    assert (equal.verdict, equal.improvement) == ("equivalent", 0.0)
    assert stats.SYMBOLS["equivalent"] in repr(equal)


@pytest.fixture(scope="module")
def blog() -> Iterator[Lab]:
    with Lab(create_app(), redis=False) as lab:
        yield lab


def test_on_the_blog_the_fast_endpoint_gives_the_same_answer_in_two_statements(blog: Lab) -> None:
    with blog.latency(0.2):
        found = blog.compare("/performance/slow-endpoint?sleep_ms=0", "/performance/fast-endpoint", seconds=2)
    assert found.same_body
    assert (found.statements_a, found.statements_b, found.latency_ms) == (1051, 2, 0.2)


def test_any_application_will_do_and_a_missing_path_names_the_nearest() -> None:
    app = FastAPI()

    @app.get("/json")
    async def as_json() -> dict[str, int]:
        return {"n": 1}

    @app.get("/text")
    async def as_text() -> Response:
        return Response("n=1", media_type="text/plain")

    with Lab(app) as lab:
        found = lab.compare("/json", "/text", seconds=0.2)
        assert found.difference == Difference("byte 0", "'{\"n\":1}'", "'n=1'")
        assert "/json" in repr(lab.compare("/json", "/jso"))
