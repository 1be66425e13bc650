"""comparison: the same answer first, then statements, then time."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, Response
from hypothesis import given
from hypothesis import strategies as st

import labkit._client
from labkit import stats
from labkit.asgi import Reply
from labkit.blog import create_app
from labkit.comparison import Comparison, Difference, compare_endpoints, first_difference
from labkit.errors import MeasurementError, RequestError, RequestTimeout
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

    check = staticmethod(labkit._client.Client.check)

    def __init__(self, **answers: Reply) -> None:
        self.answers, self.calls, self.trip, self.limit = answers, list[str](), RoundTrip(0.5), 30.0
        self.asked = list[Any]()

    async def call(self, method: str, path: str, **options: Any) -> Reply:
        self.calls.append(path)
        self.asked.append((method, options))
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
        "≠ No es la misma respuesta · 0 consultas → 0 · 2,0 veces más rápido (2,0–2,0)",
        'n: "<3>" → (no está)',
    ]
    assert found.low == pytest.approx(2) and found.improvement == 0.0, "a different answer is no improvement"
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


@pytest.mark.parametrize("at", [1, 2, 10])
def test_an_endpoint_that_fails_after_it_began_to_answer_or_only_later_is_not_timed_either(at: int) -> None:
    class Failing(Client):
        async def call(self, method: str, path: str, **options: Any) -> Reply:
            answer = await super().call(method, path, **options)
            return answer._replace(error="KeyError: 'id'") if len(self.calls) >= at else answer

    client = Failing(a=reply([1]), b=reply([1], elapsed=0.001))
    found = compare(client)
    assert len(client.calls) == max(at, 2), "nothing is asked after the failure"
    assert (found.verdict, found.timing.pairs, found.improvement) == ("inconclusive", 0, 0.0)
    assert repr(found).startswith("✗ No se puede comparar") and "→ 200\nKeyError: 'id'" in repr(found)


def test_the_options_of_a_request_go_with_every_call() -> None:
    client = Client(a=reply([1]), b=reply([1]))
    compare(client, method="POST", headers={"x": "1"}, json={"n": 1})
    assert client.asked == [("POST", {"headers": {"x": "1"}, "json": {"n": 1}})] * len(client.asked)


@pytest.mark.parametrize("bad", [{"seconds": 0}, {"seconds": "x"}, {"minimum_effect": None}, {"seconds": math.nan}])
def test_unusable_numbers_are_named(bad: dict[str, Any]) -> None:
    client = Client(a=reply([1]), b=reply([1]))
    with pytest.raises(MeasurementError, match=rf"{next(iter(bad))}=.* no sirve.*mayor que 0"):
        compare(client, **bad)
    assert client.calls == []


def test_an_unknown_option_is_named_with_those_there_are() -> None:
    with pytest.raises(RequestError, match=r"nonsense.*headers.*seconds"):
        compare(Client(), nonsense=1)


def slow() -> FastAPI:
    """``/n`` counts; a call with ``last`` hangs from the call of that number on; each waits ``seconds``."""
    app, calls = FastAPI(), itertools.count(1)

    @app.get("/n")
    async def n(seconds: float = 0.0, last: float = math.inf) -> int:
        app.state.calls = number = next(calls)
        await asyncio.sleep(seconds if number <= last else 60)
        return 1

    return app


def test_no_pair_is_started_that_cannot_end_in_time() -> None:
    with Lab(app := slow()) as lab:
        found = lab.compare("/n?seconds=0.3", "/n?seconds=0.3", seconds=1.0)
    assert app.state.calls == 2 and found.failure == ""
    assert (found.same_body, found.verdict, found.improvement) == (True, "inconclusive", 0.0)
    assert "1 de los 6" in repr(found)


def test_a_call_that_is_under_way_at_the_limit_is_stopped() -> None:
    with Lab(app := slow()) as lab:
        found = lab.compare("/n?last=5", "/n?last=5", seconds=0.5)
        assert app.state.calls == 6 and found.failure == ""
        assert found.verdict == "inconclusive" and found.timing.pairs < 6
    with Lab(app := slow()) as lab:
        found = lab.compare("/n", "/n?last=1", seconds=0.5)
        assert app.state.calls == 2 and (found.verdict, found.timing.pairs) == ("inconclusive", 0)
        assert "GET /n?last=1 no respondió dentro de los 0,5 s" in repr(found) and "seconds=1" in repr(found)
        found = lab.compare("/n?last=0", "/n", seconds=0.5)
        assert app.state.calls == 3 and "GET /n?last=0 no respondió" in found._repr_html_()
        assert found.plot().png()
    with Lab(slow(), time_limit=0.2) as lab, pytest.raises(RequestTimeout, match="time_limit="):
        lab.compare("/n?last=0", "/n")


def test_latency_is_shown_only_where_a_statement_paid_it() -> None:
    assert "simulada" not in repr(compare(Client(a=reply([1]), b=reply([1]))))
    assert "simulada" in repr(compare(Client(a=reply([1], queries=1), b=reply([1]))))


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
        found = blog.compare("/performance/slow-endpoint?sleep_ms=0", "/performance/fast-endpoint", seconds=6)
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
