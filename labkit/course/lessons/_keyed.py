"""The checks of the key (2.2 and 2.3): one key for a question, whoever asks it and however."""

# No "from __future__ import annotations": those of the functions below are looked at as in a notebook.

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

from fastapi import Depends
from sqlalchemy.orm import Session

from labkit.course.checks import Context, Verdict, done
from labkit.course.lessons._cache import composed, counted, rebound, right_client, right_parts, unharmed
from labkit.course.probe import Probe

ASKED = (1, 2, 3, 4, 1, 2, 3, 4)
USERS = range(11, 28)  # seventeen
OTHERS: tuple[tuple[Any, Any], ...] = (
    ("es", "en"),
    (1, 2),
    (1.5, 2.5),
    (date(2024, 1, 1), date(2024, 1, 2)),
    (("a", 1), ("a", 2)),
    (None, "es"),
    ("Session", "a Session object"),
)
"""Pairs of values that ask for different things."""


class _OtherSession(Session):
    """A session of a team that has added to it."""


def check_2_2(ctx: Context, key_parts: Callable[..., Any]) -> Verdict:
    """Executions and keys of repeated questions; then which arguments tell questions apart."""

    def parts(arguments: Mapping[str, Any]) -> list[str]:
        found = ctx.call(key_parts, arguments)
        good = isinstance(found, list | tuple) and all(isinstance(part, str) for part in found)
        ctx.require(good, "parts_type", what=repr(found)[:60])
        return list(found)

    parts({"user_id": 1})

    def key(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> str:
        return ":".join([prefix, func.__name__, *key_parts(kwargs)])

    with right_client(ctx) as client, Probe(ctx.lab, composed(client, key), writer=None) as probe:
        answers = probe.ask(*ASKED)
        counts = counted(probe, answers)
    unharmed(answers)
    ctx.require(not counts["foreign"], "parts_shared", **counts)
    ctx.require(counts["runs"] == len({*ASKED}), "parts_session", **counts)
    session, other = Session(), Session()
    for name in ("db", "session", "connection"):
        same = parts({"user_id": 1, name: session}) == parts({"user_id": 1, name: other})
        ctx.require(same, "parts_by_name", name=name)
    session, other = _OtherSession(), _OtherSession()  # both alive: an address used anew would be luck
    same = parts({"user_id": 1, "db": session}) == parts({"user_id": 1, "db": other})
    ctx.require(same, "parts_subclass")
    for one, two in OTHERS:
        apart = parts({"user_id": 1, "choice": one}) != parts({"user_id": 1, "choice": two})
        ctx.require(apart, "parts_lost", one=repr(one), two=repr(two))
    ctx.require(parts({"after": 5}) != parts({"before": 5}), "parts_names")
    ctx.require(parts({"a": 1, "b": 2}) == parts({"b": 2, "a": 1}), "parts_order")
    typed = parts({"user_id": 1}) != parts({"user_id": "1"})
    return done("parts_done" if typed else "parts_done_text", **counts)


def check_2_3(ctx: Context, generate_cache_key: Callable[..., Any]) -> Verdict:
    """Who gets whose answer by position; keys before and after an invalidation; then the keys themselves."""
    theirs = rebound(generate_cache_key, key_parts=right_parts)
    session = Session()  # one for all: with another each, whose answer one gets would be luck
    first = ctx.call(theirs, _user, (1, session), {}, "check")
    ctx.require(isinstance(first, str) and first, "key_type", what=repr(first)[:60])

    with right_client(ctx) as client:
        with Probe(ctx.lab, composed(client, theirs)) as probe:

            async def by_position(_: Any) -> list[Any]:
                return [await probe.endpoint(user, session) for user in (1, 2, 3)]

            bodies = ctx.lab.run(by_position, 10)
        foreign = sum(body["id"] != user for user, body in zip((1, 2, 3), bodies, strict=True))
        ctx.require(not foreign, "key_first", foreign=foreign, asked=3)

        with Probe(ctx.lab, composed(client, theirs)) as probe:
            answers = probe.ask(*USERS)
            unharmed(answers)
            before = len(probe.keys())
            reply = probe.update(USERS[0])[0]
            if reply.error:
                raise Verdict(
                    "error", "course.endpoint_raised", path="invalidate(user_id, None)", code=str(reply.error)
                )
            after = len(probe.keys())
            again = probe.ask(USERS[0])[0]
        counts = {"before": before, "after": after, "users": len(USERS)}
        ctx.require(not any(answer.outcome == "foreign" for answer in answers), "key_shared", **counts)
        ctx.require(again.outcome != "stale", "key_invalidate", **counts)
        ctx.require(after == before - 1, "key_too_many", **counts)
    _one_for_a_question(ctx, theirs)
    return done("key_done", **counts)


def _one_for_a_question(ctx: Context, theirs: Callable[..., Any]) -> None:
    """What has to give one key, and what has to give another."""

    def key(*args: Any, **kwargs: Any) -> Any:
        return ctx.call(theirs, _user, args, kwargs, "check")

    session = Session()
    asked = key(user_id=1, db=session)
    ctx.require(key(1, "es", session) == key(user_id=1, lang="es", db=session), "key_positional")
    ctx.require(key(user_id=1, lang="es", db=session) == asked, "key_default")
    ctx.require(key(1, db=None) == asked and key(1) == asked, "key_missing_session")
    ctx.require(key(1, lang="en", db=session) != asked, "key_lost")

    def of(function: Callable[..., Any], *args: Any, prefix: str = "check", **kwargs: Any) -> Any:
        return ctx.call(theirs, function, args, kwargs, prefix)

    ctx.require(of(_other_name, 1, None) == of(_other_name, user_id=1, session=session), "key_by_name")
    ctx.require(of(_drafts, 1, tenant="a", db=session) != of(_drafts, 1, tenant="b", db=session), "key_depends")
    ctx.require(of(_post, 1, db=session) != of(_user, 1, db=session), "key_function")
    ctx.require(of(_user, 1, prefix="a") != of(_user, 1, prefix="b"), "key_prefix")


def _get_db() -> Session:
    return Session()


def _get_tenant() -> str:
    return ""


async def _user(user_id: int, lang: str = "es", db: Session = Depends(_get_db)) -> None: ...


async def _post(user_id: int, lang: str = "es", db: Session = Depends(_get_db)) -> None: ...


async def _other_name(user_id: int, session: Session = Depends(_get_db)) -> None: ...


async def _drafts(user_id: int, tenant: str = Depends(_get_tenant), db: Session = Depends(_get_db)) -> None: ...
