"""The check of lesson 00: an endpoint that greets who asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from labkit.course.checks import Context, Verdict, almost, done

NAMES = ("Ana", "Luis", "María José", "x1")


def check_0_1(ctx: Context, hello: Callable[..., Any]) -> Verdict:
    """Ask for several names: the status, the shape, whether they differ, whether each is right."""
    greetings = []
    for name in NAMES:
        reply = ctx.answer(f"/hello/{quote(name)}")
        ctx.require(reply.status == 200, "hello_status", name=name, status=reply.status)
        body = reply.json
        ctx.require(isinstance(body, dict) and "message" in body, "hello_shape", got=body)
        greetings.append(body["message"])
    different = len(set(map(str, greetings)))
    ctx.require(different > 1, "hello_same", names=len(NAMES), different=different)
    for name, greeting in zip(NAMES, greetings, strict=True):
        if greeting != f"Hola, {name}":
            return almost("hello_body", name=name, expected=repr(f"Hola, {name}"), got=repr(greeting))
    return done("hello_done", names=len(NAMES))
