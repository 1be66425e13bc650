"""The indexes that a foreign key does not bring along: made and dropped by a call."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, inspect, text

from labkit.blog.models import Base

STATEMENTS = {
    "ix_posts_author_id": "CREATE INDEX IF NOT EXISTS ix_posts_author_id ON posts (author_id, id, title)",
    "ix_comments_post_id": "CREATE INDEX IF NOT EXISTS ix_comments_post_id ON comments (post_id)",
    "ix_comments_author_id": "CREATE INDEX IF NOT EXISTS ix_comments_author_id ON comments (author_id)",
}
"""One index a foreign key. That on posts also carries what the feed reads, which spares the table."""


def create(engine: Engine) -> tuple[str, ...]:
    """Make every index of ``STATEMENTS`` that is missing; return the names of all that are there."""
    with engine.begin() as connection:
        for statement in STATEMENTS.values():
            connection.execute(text(statement))
    return present(engine)


def drop(engine: Engine) -> None:
    """Drop every index on the blog's tables, the learner's own included; keys and constraints stay."""
    with engine.begin() as connection:
        for name in _names(connection):
            connection.execute(text(f'DROP INDEX "{name}"'))


def present(engine: Engine) -> tuple[str, ...]:
    """The names of the indexes on the blog's tables, sorted, without those of keys and constraints."""
    with engine.connect() as connection:
        return _names(connection)


def _names(connection: Connection) -> tuple[str, ...]:
    inspector = inspect(connection)
    indexes = [index for table in Base.metadata.tables for index in inspector.get_indexes(table)]
    return tuple(sorted(str(index["name"]) for index in indexes if not index.get("duplicates_constraint")))
