"""A reply: read when asked, shown short, never trusted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest
from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse

from labkit.asgi import Reply, call
from labkit.errors import NotJSONError


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_what_is_not_json_is_named() -> None:
    app = FastAPI()

    @app.get("/page")
    async def page() -> PlainTextResponse:
        return PlainTextResponse("<html>hola")

    reply = run(call(app, "GET", "/page"))
    with pytest.raises(NotJSONError, match=r"GET /page.*text/plain.*<html>hola"):
        _ = reply.json
    with pytest.raises(NotJSONError, match="empieza con «»"):
        _ = Reply(204, b"", (), 0.1, 0, "DELETE /x").json


def test_html_shows_the_json_and_never_much_of_it() -> None:
    short = Reply(200, json.dumps({"a": ["<i>"]}).encode(), (), 0.0123, 1051, "GET /a")
    assert "&lt;i&gt;" in short._repr_html_() and "1.051" in short._repr_html_() and "12,3 ms" in repr(short)
    long = Reply(200, b"[" + b"1," * 20_000 + b"1]", (), 0.1)
    assert len(long._repr_html_()) < 4_000


def test_cookies_of_an_answer_can_be_passed_on() -> None:
    app = FastAPI()

    @app.get("/login")
    def login(response: Response) -> None:
        response.set_cookie("session", "abc", httponly=True)
        response.set_cookie("theme", "dark")

    assert run(call(app, "GET", "/login")).cookies == {"session": "abc", "theme": "dark"}


def test_the_simulated_latency_is_shown_where_it_acted() -> None:
    assert "0,5 ms simulados" in repr(Reply(200, b"", (), 0.1, 7, "GET /a", latency_ms=0.5))
    assert "simulados" not in repr(Reply(200, b"", (), 0.1, 7, "GET /a"))


def test_a_reply_cannot_be_changed() -> None:
    reply = Reply(200, b"", (), 0.1)
    with pytest.raises(AttributeError):
        reply.status = 500  # type: ignore[misc]
    with pytest.raises(AttributeError):
        reply.note = reply.nothing = ""  # type: ignore[attr-defined, misc]
