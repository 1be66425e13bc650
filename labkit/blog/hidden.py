"""Small blogs with awkward data, new at each check, to prove that an endpoint answers rightly in general.

Each holds, whatever the seed: a user without posts, a user whose posts nobody comments, a post with many
comments, equal titles, titles that need escaping, and ids with gaps, written out of order.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.orm import Session, sessionmaker

from labkit._text import say
from labkit.blog import words
from labkit.blog.engines import make_engine
from labkit.blog.models import Base, Comment, Post, User
from labkit.errors import LabkitError

FEED_USERS = 50
LEAST_USERS = 5
MANY_COMMENTS = 40
_AWKWARD_TITLES = (
    '¿"Comillas" y \\ barras?',
    "O'Higgins & <b>Ñandú</b>",
    "100 % [sí], {no}: null",
    "Ω\t日本\u2028🙂",
)


class HiddenBlog:
    """A session factory on a small database of its own, for any number of threads.

    Calling it gives a session. For an application's requests, put ``get_db`` in place of its own::

        with make_session_factory(seed) as hidden:
            app.dependency_overrides[get_db] = hidden.get_db
            ...
            with hidden() as session:
                right = expected(session)

    Leaving the block, ``close()`` and the end of the interpreter remove the database.
    """

    def __init__(self, seed: int, users: int, engine: Engine, folder: Path) -> None:
        self.seed = seed
        self.users = users
        self.engine = engine
        self._sessions = sessionmaker(engine)
        self._close = weakref.finalize(self, _remove, engine, folder)

    def __call__(self) -> Session:
        return self._sessions()

    async def get_db(self) -> AsyncIterator[Session]:
        """One session for one request, like ``labkit.blog.get_db``."""
        with self._sessions() as session:
            yield session

    def close(self) -> None:
        """Remove the database; closing twice is fine."""
        self._close()

    def __enter__(self) -> HiddenBlog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"HiddenBlog(seed={self.seed}, users={self.users})"


def make_session_factory(seed: int, users: int = 20) -> HiddenBlog:
    """Make a small blog; the same arguments make the same rows.

    Args:
        seed: decides everything; print it with a failed check, so that it can be repeated.
        users: how many there are, 5 or more; with more than 50 an answer must leave some out.

    Raises:
        LabkitError: if ``users`` is too small to hold every awkward case.
    """
    if isinstance(users, bool) or not isinstance(users, int) or users < LEAST_USERS:
        raise LabkitError(say("blog.hidden_users", users=repr(users), least=LEAST_USERS))
    folder = Path(tempfile.mkdtemp(prefix="labkit-hidden-"))
    # A file, because a database in memory belongs to one connection and with it to one thread.
    engine = make_engine(f"sqlite:///{folder / 'hidden.sqlite3'}")
    blog = HiddenBlog(seed, users, engine, folder)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA synchronous = OFF")
        connection.commit()
        Base.metadata.create_all(connection)
        _write(connection, np.random.default_rng(seed), users)
        connection.commit()
    return blog


def expected(session: Session, users: int = FEED_USERS) -> dict[str, Any]:
    """The right answer of the feed endpoints, counted row by row in plain Python.

    Args:
        session: on any blog, hidden or not.
        users: how many users an answer holds at most.
    """
    comments = Counter(session.scalars(select(Comment.post_id)))
    posts: dict[int, list[dict[str, Any]]] = {}
    for post_id, author_id, title in sorted(session.execute(select(Post.id, Post.author_id, Post.title)).all()):
        entry = {"id": post_id, "title": title, "comments_count": comments[post_id]}
        posts.setdefault(author_id, []).append(entry)
    first = sorted(session.execute(select(User.id, User.username)).all())[:users]
    feed = [{"id": user_id, "username": name, "posts": posts.get(user_id, [])} for user_id, name in first]
    return {"users": feed, "total": len(feed)}


def _write(connection: Connection, rng: np.random.Generator, users: int) -> None:
    user_ids = _ids(rng, users)
    # The special ones are among the first by id, so that they are in every answer; the first gets no posts.
    _, ignored, popular, *others = rng.permutation(sorted(user_ids)[:FEED_USERS]).tolist()
    others += sorted(user_ids)[FEED_USERS:]
    authors = [ignored] * 2 + [popular] * 3 + [other for other in others for _ in range(rng.integers(1, 6))]

    titles = [_title(rng) for _ in authors]
    titles[:6] = [titles[0], *_AWKWARD_TITLES, titles[0]]
    post_ids = _ids(rng, len(authors))
    counts = rng.integers(0, 5, len(authors))
    counts[:4] = 0, 0, MANY_COMMENTS, 0

    post_of = np.repeat(post_ids, counts).tolist()
    comment_ids = _ids(rng, len(post_of))
    commenters = rng.choice(user_ids, len(post_of)).tolist()
    rows: dict[type[Base], list[dict[str, Any]]] = {
        User: [
            {
                "id": i,
                "username": f"{words.username(int(rng.integers(2**16)))}.{i}",
                "email": f"{i}@example.org",
            }
            for i in user_ids
        ],
        Post: [
            {"id": i, "title": title, "body": title, "author_id": author}
            for i, title, author in zip(post_ids, titles, authors, strict=True)
        ],
        Comment: [
            {"id": i, "body": "¿?", "post_id": post, "author_id": author}
            for i, post, author in zip(comment_ids, post_of, commenters, strict=True)
        ],
    }
    for model, table in rows.items():
        connection.execute(insert(model), table)


def _ids(rng: np.random.Generator, count: int) -> list[int]:
    """Different ids with gaps, in no order."""
    steps = rng.integers(1, 5, count)
    steps[count // 2] = 3
    ids: list[int] = rng.permutation(np.cumsum(steps)).tolist()
    return ids


def _title(rng: np.random.Generator) -> str:
    language = ("es", "en")[rng.integers(2)]
    return words.title(language, int(rng.integers(8)), rng.integers(0, 2**16, 3).tolist())


def _remove(engine: Engine, folder: Path) -> None:
    engine.dispose()
    shutil.rmtree(folder, ignore_errors=True)
