"""What the measurements of Exercise 2 share: a small database, a route for a while, keys that are gone afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis
from sqlalchemy import Engine, create_engine, insert

from labkit.blog import Base, Comment, Post, User
from labkit.course.checks import Context


@contextmanager
def small_blog(users: int, posts: int = 0, comments: int = 0) -> Iterator[Engine]:
    """A blog in memory with so many of each; user 7 is one of them if there are seven."""
    engine = create_engine("sqlite://", enable_from_linting=False)  # the linter warns of T38, on a channel nobody reads
    rows: dict[Any, list[dict[str, Any]]] = {
        User: [{"username": f"user{n}", "email": f"user{n}@example.org"} for n in range(1, users + 1)],
        Post: [{"title": f"post {n}", "body": "", "author_id": 1} for n in range(posts)],
        Comment: [{"post_id": 1, "author_id": 1, "body": "yes"} for _ in range(comments)],
    }
    try:
        with engine.begin() as connection:
            Base.metadata.create_all(connection)
            for table, values in rows.items():
                if values:
                    connection.execute(insert(table), values)
        yield engine
    finally:
        engine.dispose()


@contextmanager
def without_keys(ctx: Context, name: str) -> Iterator[None]:
    """No key of Redis has ``name`` in it, before and after."""
    client = redis.Redis.from_url(ctx.lab.redis.url, socket_timeout=5)

    def delete() -> None:
        if keys := list(client.scan_iter(match=f"*{name}*", count=1000)):
            client.delete(*keys)

    try:
        delete()
        yield
    finally:
        delete()
        client.close()


@contextmanager
def mounted(ctx: Context, endpoint: Callable[..., Any], path: str) -> Iterator[None]:
    """The Lab's application with an endpoint more."""
    app = ctx.lab.app
    app.add_api_route(path, endpoint, response_model=None)
    route = app.router.routes[-1]
    try:
        yield
    finally:
        app.router.routes.remove(route)
