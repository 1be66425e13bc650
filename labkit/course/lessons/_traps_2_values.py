"""Traps of Exercise 2 that lie in what is stored: values that change, that never come back, that are no values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from math import nan
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from labkit.course.checks import Context
from labkit.course.lessons._traps_2_store import mounted, small_blog, without_keys
from labkit.course.trapcard import Found, judged
from labkit.errors import LabkitError

VALUES: tuple[Any, ...] = (
    {1: "uno"},
    (4, -58),
    datetime(2026, 3, 1, 12, 30),
    Decimal("9.90"),
    {"admin", "editor"},
    b"\x89PNG",
)
FIELDS = ("id", "username", "email")
NOBODY = 999_999
LOOKS = 100
VISITS = 5
HITS = 10
PATH = "/gallery"

Function = Callable[..., Any]


def _brief(text: object) -> str:
    """What an object's text says, without its address and the quotes of JSON."""
    return re.sub("0x[0-9a-f]+", "0x…", str(text)).strip('"')[:60]


def t29(ctx: Context, trap: Any, cure: Any) -> Found:
    """``default=str``: values that come back changed."""

    def changed(save: Function, load: Function) -> list[tuple[Any, Any]]:
        pairs = []
        for number, value in enumerate(VALUES):
            ctx.call(save, f"t29:{number}", value)
            pairs.append((value, ctx.call(load, f"t29:{number}")))
        return [(value, found) for value, found in pairs if type(found) is not type(value) or found != value]

    with without_keys(ctx, "t29"):
        lost, cured = changed(*trap), changed(*cure)
    before, after = next((pair for pair in lost if isinstance(pair[0], Decimal)), (None, None))
    numbers = len(lost), len(cured)
    return judged(*numbers, bad=lambda n: n > 0, total=len(VALUES), before=repr(before), after=repr(after))


def t30(ctx: Context, trap: Any, cure: Any) -> Found:
    """An ORM object as text: fields that the second read still has."""

    def left(read: Function) -> tuple[int, Any]:
        for _ in range(2):
            with Session(engine) as db, ctx.limited():
                found = read(7, db)
        has = found.__contains__ if isinstance(found, Mapping) else lambda name: hasattr(found, name)
        return sum(map(has, FIELDS)), found

    with small_blog(users=7) as engine, without_keys(ctx, "t30"):
        (lost, text), (kept, _) = left(trap), left(cure)
    return judged(lost, kept, bad=lambda n: n < len(FIELDS), text=_brief(text))


def t32(ctx: Context, trap: Any, cure: Any) -> Found:
    """None is taken for a miss: statements for the same user that does not exist."""

    def statements(find: Function) -> int:
        seen = list[str]()
        event.listen(engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
        for _ in range(LOOKS):
            with Session(engine) as db, ctx.limited():
                find(NOBODY, db)
        return len(seen)

    counts = []
    for find in (trap, cure):
        with small_blog(users=1) as engine, without_keys(ctx, "t32"):
            counts.append(statements(find))
    return judged(*counts, bad=lambda n: n > 1, looks=LOOKS)


def t34(ctx: Context, trap: Any, cure: Any) -> Found:
    """``cached: false`` in the copy: answers from the cache that do not say so."""

    def silent(endpoint: Function) -> tuple[int, list[Any]]:
        path = f"{PATH}/{{user_id}}"
        with without_keys(ctx, "t34"), mounted(ctx, endpoint, path):
            replies = [ctx.answer(f"{PATH}/7") for _ in range(HITS + 1)][1:]
        told = [reply.headers.get("x-cache") == "HIT" or reply.json.get("cached") is True for reply in replies]
        return told.count(False), replies

    (hidden, copies), (cured, _) = silent(trap), silent(cure)
    claimed = {reply.json.get("execution_time") for reply in copies}
    return judged(hidden, cured, bad=lambda n: n > 0, hits=HITS, times=len(claimed))


def t42(ctx: Context, trap: Any, cure: Any) -> Found:
    """``ttl=0`` and NaN: visits that see an error, of five each, the second five after the value was right again."""

    def errors(keep: Function) -> tuple[int, int]:
        refused, wrong = 0, {"EUR": nan}
        with without_keys(ctx, "t42"):
            with suppress(LabkitError):  # told where it is declared, before anybody visits
                refused = _failed(ctx, ctx.call(keep, 0, {"EUR": 1.08}))
            endpoint = ctx.call(keep, 60, wrong)
            _failed(ctx, endpoint, 1)
            wrong["EUR"] = 1.08
            return refused, _failed(ctx, endpoint)

    (at_zero, after), cured = errors(trap), errors(cure)
    numbers = at_zero + after, sum(cured)
    return judged(*numbers, bad=lambda n: n > 0, zero=at_zero, nan=after, visits=2 * VISITS)


def _failed(ctx: Context, endpoint: Function, visits: int = VISITS) -> int:
    with mounted(ctx, endpoint, PATH):
        return sum(ctx.lab.get(PATH).status >= 500 for _ in range(visits))


def t61(ctx: Context, trap: Any, cure: Any) -> Found:
    """A Response as its text: visits that get something else than the first one did."""

    def other(endpoint: Function) -> tuple[int, str]:
        with without_keys(ctx, "t61"), mounted(ctx, endpoint, PATH):
            replies = [ctx.answer(PATH) for _ in range(HITS)]
        bodies = [(reply.text, reply.headers.get("content-type")) for reply in replies]
        return sum(body != bodies[0] for body in bodies), bodies[-1][0]

    (lost, text), (cured, _) = other(trap), other(cure)
    return judged(lost, cured, bad=lambda n: n > 0, visits=HITS, text=_brief(text))
