"""What the check of the fast endpoint needs: hidden data to run it on, and the likeliest cause of a wrong answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

from fastapi import FastAPI

from labkit.asgi import Reply
from labkit.blog import get_db, hidden, performance
from labkit.comparison import difference
from labkit.course.checks import Context, Verdict, almost
from labkit.lab import Lab
from labkit.profiling._endpoints import around, function_of
from labkit.profiling.queries import record

SLOW = "/performance/slow-endpoint?sleep_ms=0"
PATH = "/check/fast-endpoint"
"""Where a learner's function is put, wherever (and whether) she has put it."""

OWN = "/performance/fast-endpoint"
"""Where the lesson measures it afterwards; the blog has an endpoint of its own there, which hers replaces."""

LIMIT = 10.0
"""Seconds that an answer on the small hidden data may take."""


@contextmanager
def mounted(app: Any, endpoint: Callable[..., Any]) -> Iterator[None]:
    """The application with the learner's function under ``PATH``."""
    try:
        app.add_api_route(PATH, endpoint, response_model=None)
    except Exception as error:  # FastAPI's own: a parameter without Depends, say
        raise almost("fast_declared", error=str(error).split(".")[0]) from None
    route = app.router.routes[-1]
    try:
        yield
    finally:
        app.router.routes.remove(route)


@contextmanager
def hidden_lab(ctx: Context, endpoint: Callable[..., Any], users: int) -> Iterator[tuple[Lab, dict[str, Any]]]:
    """A Lab on a database that the learner has never seen, without latency, and the right answer."""
    app = FastAPI()
    with hidden.make_session_factory(ctx.seed, users=users) as blog:
        app.dependency_overrides[get_db] = blog.get_db
        app.add_api_route(SLOW.partition("?")[0], performance.slow_endpoint, response_model=None)
        with blog() as session:
            expected = hidden.expected(session)
        with mounted(app, endpoint), Lab(app, latency=0, time_limit=LIMIT) as lab:
            yield lab, expected


def ask(ctx: Context, lab: Lab) -> tuple[Reply, int]:
    """The learner's answer and the rows that it read; an exception of hers becomes a verdict with her line."""

    async def once(client: Any) -> tuple[Reply, int]:
        with record() as recorder:
            reply = await client.call("GET", PATH)
        return reply, sum(statement.rows or 0 for statement in recorder.report(PATH, reply.elapsed, 0).statements)

    reply, rows = lab.run(once)
    if reply.error:
        raise Verdict("error", "course.endpoint_raised", path=PATH, code=str(reply.error))
    ctx.require(reply.status == 200, "fast_status", status=reply.status, body=reply.text[:200])
    return reply, rows


def in_place(lab: Lab, endpoint: Callable[..., Any]) -> bool:
    """Whether the application answers at ``OWN`` with the learner's function, below whatever decorates it."""
    met: list[Callable[..., Any]] = []

    def note(call: Callable[..., Any]) -> Callable[..., Any]:
        met.append(function_of(call))
        return call

    async def once(client: Any) -> None:
        with around(note):
            await client.call("GET", OWN)

    lab.run(once)
    return function_of(endpoint) in met


def sleeps(function: Callable[..., Any]) -> bool:
    """Whether a function calls anything named ``sleep``."""

    def within(code: CodeType) -> bool:
        return "sleep" in code.co_names or any(within(c) for c in code.co_consts if isinstance(c, CodeType))

    code = getattr(inspect.unwrap(function), "__code__", None)
    return isinstance(code, CodeType) and within(code)


def same_answer(expected: dict[str, Any], got: Any, *, seed: int | None = None) -> None:
    """Raise the verdict that names the likeliest cause where two answers differ.

    Args:
        seed: of the hidden data; None for the learner's own.
    """
    found = difference(expected, got)
    if found is None:
        return
    users = got.get("users") if isinstance(got, dict) else None
    if isinstance(users, list) and users and all(_is_user(user) for user in users):
        _keys(expected, got)
        _users(expected["users"], users, found, hidden=seed is not None)
        _posts(expected["users"], users, found, hidden=seed is not None)
    if seed is not None:
        raise almost("fast_hidden", difference=found, seed=seed)
    raise almost("fast_body", difference=found)


def _is_user(user: Any) -> bool:
    posts = user.get("posts") if _is_row(user) else None
    return isinstance(posts, list) and all(map(_is_row, posts))


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and type(row.get("id")) is int


def _keys(expected: dict[str, Any], got: dict[str, Any]) -> None:
    """Counts that are missing, keys that nobody asked for."""
    posts = [post for user in got["users"] for post in user["posts"]]
    bare = sum("comments_count" not in post for post in posts)
    if bare:
        raise almost("fast_no_counts", bare=bare, posts=len(posts))
    extra: dict[str, None] = {}
    for names, items in (
        (("users", "total"), [got]),
        (("id", "username", "posts"), got["users"]),
        (("id", "title", "comments_count"), posts),
    ):
        extra |= dict.fromkeys(str(key) for item in items for key in item if key not in names)
    if extra:
        keys = ", ".join(f"`{key}`" for key in extra)
        for user in got["users"]:
            own, right = user.get("posts_count"), len(user["posts"])
            if isinstance(own, int) and own > right > 0:
                raise almost("fast_extra_multiplied", keys=keys, got=own, expected=right)
        raise almost("fast_extra_keys", keys=keys)


def _users(expected: list[Any], got: list[Any], found: object, hidden: bool) -> None:
    """Too many users, users that are not there, users in another order."""
    right, mine = [user["id"] for user in expected], [user["id"] for user in got]
    if len(set(mine)) < len(mine):
        raise almost("fast_repeated", got=len(mine), different=len(set(mine)))
    if len(mine) > len(right):
        raise almost("fast_all_users", got=len(mine), expected=len(right))
    lost = [user for user in expected if user["id"] not in mine]
    if hidden and lost and mine in (right[: len(mine)], [*range(1, len(mine) + 1)]):
        raise almost("fast_ids", got=max(mine), expected=max(right))
    if lost and not any(user["posts"] for user in lost):
        raise almost("fast_lost_users", lost=len(lost))
    if lost and len(mine) < len(right):
        raise almost("fast_few_users", got=len(mine), expected=len(right))
    if mine != right:
        raise almost("fast_order", difference=found)


def _posts(expected: list[Any], got: list[Any], found: object, hidden: bool) -> None:
    """Posts that are not there, posts in another order, counts that are wrong."""
    right, mine = _by_place(expected), _by_place(got)
    lost = {place: post for place, post in right.items() if place not in mine}
    if lost and mine.keys() <= right.keys():
        _lost_posts(right, mine, lost, hidden)
    if mine.keys() != right.keys():
        return
    wrong = {place: (right[place]["comments_count"], mine[place]["comments_count"]) for place in right}
    wrong = {place: counts for place, counts in wrong.items() if counts[0] != counts[1]}
    if not wrong and [*mine] != [*right]:
        raise almost("fast_order", difference=found)
    if wrong and all(counts == (0, 1) for counts in wrong.values()):
        raise almost("fast_counts_row", wrong=len(wrong))
    if any(isinstance(own, int) and own > count > 0 for count, own in wrong.values()):
        raise almost("fast_multiplied", difference=found)


def _lost_posts(right: dict[Any, Any], mine: dict[Any, Any], lost: dict[Any, Any], hidden: bool) -> None:
    served = max((user for user, _ in mine), default=0)
    if hidden and all(user > served for user, _ in lost):
        raise almost("fast_ids", got=served, expected=max(user for user, _ in right))
    titles = {str(post.get("title")) for post in mine.values()}
    if all(post["title"] in titles for post in lost.values()):
        raise almost("fast_titles", got=len(mine), expected=len(right))
    if not any(post["comments_count"] for post in lost.values()):
        raise almost("fast_lost_posts", got=len(mine), expected=len(right))


def _by_place(users: list[Any]) -> dict[tuple[Any, Any], Any]:
    """Every post by its user and its id, in the order of the answer."""
    return {(user["id"], post["id"]): post for user in users for post in user["posts"]}
