"""The feed of 50 users and 1,000 posts in several ways, against the raw driver.

Every variant, the floor included, is an endpoint of the same FastAPI application with the same ``get_db``
dependency, called directly as ASGI, with no simulated latency. The floor runs two statements on a connection of the
driver itself (sqlite3, psycopg) that stays open and writes the answer with ``orjson.dumps``. Its second statement is
the best of those tried: a correlated count where there is an index; where there is none, a join with a grouped
subquery on SQLite and a grouped join on PostgreSQL.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import psycopg
from fastapi import Depends, FastAPI, Response
from sqlalchemy import make_url, select, text
from sqlalchemy.orm import Session, selectinload

from benchmarks._measure import QUICK, Case, Table, compare, publish, repeat_async
from labkit import asgi
from labkit.blog import Post, User, create_app, get_db, indexes
from labkit.blog.engines import sqlite_url
from labkit.services import postgres

SCALES = (1,) if QUICK else (1, 10, 100)
SLOW_UP_TO = 10  # scale beyond which a thousand scans take minutes
SECONDS = 6  # a table

USERS = "SELECT id, username FROM users ORDER BY id LIMIT 50"
FEW = "(SELECT id FROM users ORDER BY id LIMIT 50)"
BY_INDEX = f"""
SELECT author_id, id, title, (SELECT count(*) FROM comments WHERE post_id = posts.id)
FROM posts WHERE author_id IN {FEW} ORDER BY author_id, id"""
BY_SCAN = {
    "sqlite": f"""
        SELECT author_id, id, title, coalesce(counted, 0) FROM posts LEFT JOIN (
            SELECT post_id, count(*) AS counted FROM comments
            WHERE post_id IN (SELECT id FROM posts WHERE author_id IN {FEW}) GROUP BY post_id) ON post_id = id
        WHERE author_id IN {FEW} ORDER BY author_id, id""",
    "postgresql": f"""
        SELECT posts.author_id, posts.id, posts.title, count(comments.post_id)
        FROM posts LEFT JOIN comments ON comments.post_id = posts.id
        WHERE posts.author_id IN {FEW} GROUP BY posts.author_id, posts.id, posts.title
        ORDER BY posts.author_id, posts.id""",
}


class Raw:
    """The floor: the driver's own cursor and ``orjson.dumps``."""

    def __init__(self, url: str) -> None:
        self.indexed = False
        address = make_url(url)
        self._by_scan = BY_SCAN[address.get_backend_name()]
        self._connection: Any
        if address.get_backend_name() == "sqlite":
            self._connection = sqlite3.connect(str(address.database), check_same_thread=False)
        else:
            dsn = address.set(drivername="postgresql").render_as_string(hide_password=False)
            self._connection = psycopg.connect(dsn, autocommit=True)
        self._cursor = self._connection.cursor()

    def answer(self) -> bytes:
        """The body of the feed."""
        feeds = {}
        for user_id, username in self._cursor.execute(USERS).fetchall():
            feeds[user_id] = {"id": user_id, "username": username, "posts": []}
        posts = self._cursor.execute(BY_INDEX if self.indexed else self._by_scan).fetchall()
        for author_id, post_id, title, count in posts:
            feeds[author_id]["posts"].append({"id": post_id, "title": title, "comments_count": count})
        return orjson.dumps({"users": list(feeds.values()), "total": len(feeds)})

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


async def everything_loaded(db: Session = Depends(get_db)) -> Response:
    """The textbook's cure: ``selectinload`` of all posts and all comments, counted in Python."""
    loads = selectinload(User.posts).selectinload(Post.comments)
    users = db.scalars(select(User).order_by(User.id).limit(50).options(loads)).all()
    feeds = [
        {
            "id": user.id,
            "username": user.username,
            "posts": [
                {"id": post.id, "title": post.title, "comments_count": len(post.comments)}
                for post in sorted(user.posts, key=lambda post: post.id)
            ],
        }
        for user in users
    ]
    return Response(orjson.dumps({"users": feeds, "total": len(feeds)}), media_type="application/json")


@contextmanager
def served(url: str, scale: int) -> Iterator[tuple[asyncio.AbstractEventLoop, FastAPI, Raw]]:
    """The blog on this database, started in a loop of its own, with the floor and the textbook's cure mounted."""
    app = create_app(scale=scale, database_url=url)
    app.state.prepare()
    raw = Raw(url)

    @app.get("/raw")
    async def floor(db: Session = Depends(get_db)) -> Response:
        return Response(raw.answer(), media_type="application/json")

    app.get("/everything-loaded")(everything_loaded)
    loop = asyncio.new_event_loop()
    lifespan = asgi.Lifespan(app)
    loop.run_until_complete(lifespan.__aenter__())
    try:
        yield loop, app, raw
    finally:
        raw.close()
        loop.run_until_complete(lifespan.__aexit__(None, None, None))
        loop.close()


def _case(loop: asyncio.AbstractEventLoop, app: FastAPI, name: str, path: str, goal: float | None = None) -> Case:
    async def request() -> None:
        reply = await asgi.call(app, "GET", path)
        if reply.status != 200:
            raise RuntimeError(f"{path}: {reply.status} {reply.error}")

    return Case(name, repeat_async(loop, request), goal)


def measure(database: str, url: str, scale: int) -> Iterator[Table]:
    """One table without and one with the indexes on the foreign keys."""
    with served(url, scale) as (loop, app, raw):
        for indexed in (False, True):
            (indexes.create if indexed else indexes.drop)(app.state.engine)
            raw.indexed = indexed
            if database == "PostgreSQL":
                with app.state.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    connection.execute(text("VACUUM (ANALYZE)"))

            cases: list[tuple[Any, ...]] = [
                ("raw driver + orjson", "/raw"),
                ("fast-endpoint, the reference", "/performance/fast-endpoint", 3.5 if indexed else None),
                ("selectinload of everything", "/everything-loaded"),
            ]
            if indexed or scale == 1:
                goal = 1.7 if indexed else None  # without an index it reads all comments a thousand times
                cases.insert(1, ("fastest-endpoint, JSON made by the database", "/performance/fastest-endpoint", goal))
            if (indexed and scale <= SLOW_UP_TO) or (scale == 1 and not QUICK):
                cases.append(("slow-endpoint, its sleep deleted", "/performance/slow-endpoint?sleep_ms=0"))
            if scale == 1 and not QUICK:
                cases.append(("slow-endpoint, as it is", "/performance/slow-endpoint"))
            if scale == 1 and (indexed or not QUICK):
                _same(loop, app)
            title = f"{database}, {scale}x, {'indexes' if indexed else 'no index'} on the foreign keys"
            yield compare(
                title,
                "the raw driver, as the module says",
                [_case(loop, app, *each) for each in cases],
                seconds=SECONDS,
                batch=0.01,
            )


def _same(loop: asyncio.AbstractEventLoop, app: FastAPI) -> None:
    """Raise unless all variants give one answer: only then are their times worth comparing."""
    paths = [f"/performance/{name}-endpoint" for name in ("slow", "fast", "fastest")]
    answers = [
        loop.run_until_complete(asgi.call(app, "GET", path)).json for path in (*paths, "/raw", "/everything-loaded")
    ]
    if any(answer != answers[0] for answer in answers):
        raise RuntimeError("the variants do not give the same answer")


def main() -> None:
    """SQLite, then PostgreSQL, each at every scale."""
    tables: list[Table] = []
    for scale in SCALES:
        # A folder each: 100 times the data is a gigabyte, and no two need be there at once.
        with tempfile.TemporaryDirectory(prefix="labkit-bench-") as folder:
            url = sqlite_url(Path(folder), scale).render_as_string()
            tables += measure("SQLite", url, scale)
        with tempfile.TemporaryDirectory(prefix="labkit-bench-") as folder, postgres.start(Path(folder)) as server:
            tables += measure("PostgreSQL", server.url, scale)
    publish("endpoint", " ".join((__doc__ or "").split()), tables)


if __name__ == "__main__":
    main()
