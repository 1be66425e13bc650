"""The check of lesson 00: an endpoint that greets who asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from labkit.course.checks import Context, Verdict, almost, done

NAMES = ("Ana", "Luis", "María José", "x1")


def check_0_1(ctx: Context, hello: Callable[..., Any]) -> Verdict:
    """Ask for several names; where the answers are wrong, the application may not know the function at all."""
    try:
        return _greetings(ctx)
    except Verdict as verdict:
        declared = any(getattr(route, "endpoint", None) is hello for route in ctx.lab.app.routes)
        raise verdict if declared else almost("hello_not_declared") from None


def _greetings(ctx: Context) -> Verdict:
    """The status, the shape, whether they differ, whether each is right."""
    greetings = []
    for name in NAMES:
        reply = ctx.answer(f"/hello/{quote(name)}")
        ctx.require(reply.status != 422, "hello_parameter", name=name)
        ctx.require(reply.status != 405, "hello_method", name=name)
        ctx.require(reply.status == 200, "hello_status", name=name, status=reply.status)
        body = reply.json
        ctx.require(body is not None, "hello_nothing")
        ctx.require(isinstance(body, dict) and [*body] == ["message"], "hello_shape", got=repr(body)[:80])
        greetings.append(body["message"])
    ctx.require(not any("{" in str(greeting) for greeting in greetings), "hello_no_f", got=repr(greetings[0]))
    different = len(set(map(str, greetings)))
    ctx.require(different > 1, "hello_same", names=len(NAMES), different=different)
    for name, greeting in zip(NAMES, greetings, strict=True):
        if greeting != f"Hola, {name}":
            raise almost("hello_body", name=name, expected=repr(f"Hola, {name}"), got=repr(greeting))
    return done("hello_done", names=len(NAMES))
