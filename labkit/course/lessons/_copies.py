"""The blog's data in memory, for a trap that changes it or counts what the database does; gone afterwards."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, event, insert
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from labkit.blog import Base, Comment, Post, User, indexes

FINE = 50  # SQLite tells us of every so many of its steps


@contextmanager
def copy_of(engine: Engine, *, indexed: bool = True) -> Iterator[Session]:
    """A session on a copy of a SQLite database, with the blog's indexes or without any."""
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as memory:
        with engine.connect() as connection:
            original: Any = connection.connection.driver_connection
            original.backup(memory)
        copy = create_engine("sqlite://", creator=lambda: memory, poolclass=StaticPool)
        (indexes.create if indexed else indexes.drop)(copy)
        with Session(copy) as session:
            yield session


@contextmanager
def popular(users: int = 5, posts: int = 10, comments: int = 100) -> Iterator[Session]:
    """A session on a small blog of its own where every post has many comments."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    try:
        Base.metadata.create_all(engine)
        indexes.create(engine)
        with Session(engine) as session:
            session.execute(insert(User), [{"id": i, "username": f"u{i}", "email": f"u{i}@e"} for i in range(users)])
            written = [
                {"id": i, "title": f"t{i}", "body": "b" * 200, "author_id": i % users} for i in range(users * posts)
            ]
            session.execute(insert(Post), written)
            said = [
                {"body": "c" * 80, "post_id": i % len(written), "author_id": 0} for i in range(len(written) * comments)
            ]
            session.execute(insert(Comment), said)
            session.commit()
            yield session
    finally:
        engine.dispose()


def steps(session: Session, work: Callable[[], object]) -> int:
    """How many steps of its virtual machine SQLite takes for some work: the same on every machine."""
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1

    memory: Any = session.connection().connection.driver_connection
    memory.set_progress_handler(tick, FINE)
    try:
        work()
    finally:
        memory.set_progress_handler(None, 0)
    return ticks * FINE


def values_read(session: Session, work: Callable[[], object]) -> int:
    """How many values (rows times columns) the statements of some work bring from the database."""
    asked: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        asked.append((statement, parameters))

    engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        event.remove(engine, "before_cursor_execute", note)
    memory: Any = session.connection().connection.driver_connection
    return sum(len(row) for statement, parameters in asked for row in memory.execute(statement, parameters))
