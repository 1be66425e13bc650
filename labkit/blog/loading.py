"""Fills a database with the generated data: all of it or nothing, once, whoever else tries."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Column, Connection, Integer, MetaData, Table, func, insert, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from labkit._text import say
from labkit.blog import generator
from labkit.blog.engines import make_engine
from labkit.blog.models import Base
from labkit.errors import AppError

Progress = Callable[[int, int], None]
"""Called with the rows written so far and the rows in all."""

CHUNK = 5_000
PATIENCE = 600.0
"""Seconds to wait for another process that is writing the same file."""

_LOCK_KEY = 0x1AB_B106  # any number, the same in every process
_VERSIONS = Table(
    "blog_version", MetaData(), Column("version", Integer), Column("seed", Integer), Column("scale", Integer)
)


def load_sqlite(path: Path, scale: int, progress: Progress) -> None:
    """Make the file unless it is current; it appears under its name when it is complete."""
    generator.check_scale(scale)
    try:
        if _is_current_file(path, scale):
            return
        with _alone(path.with_name(path.name + ".lock")):
            if _is_current_file(path, scale):  # another process made it while this one waited
                return
            _replace_file(path, scale, progress)
    except (OSError, sqlite3.Error, SQLAlchemyError) as error:
        raise AppError(say("blog.file", path=path, error=_reason(error))) from None


def load_postgresql(url: URL, scale: int, progress: Progress) -> None:
    """Fill the database in one transaction unless it is current."""
    generator.check_scale(scale)
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            if _is_current(connection, scale):
                return
        with engine.begin() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
            if _is_current(connection, scale):
                return
            _fill(connection, scale, progress)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM (ANALYZE) users, posts, comments"))
    except SQLAlchemyError as error:
        raise AppError(say("blog.server", url=url.render_as_string(), error=_reason(error))) from None
    finally:
        engine.dispose()


def _is_current_file(path: Path, scale: int) -> bool:
    if not path.exists():
        return False
    engine = make_engine(URL.create("sqlite", database=str(path)))
    try:
        with engine.connect() as connection:
            return _is_current(connection, scale)
    finally:
        engine.dispose()


def _is_current(connection: Connection, scale: int) -> bool:
    """Whether the data is there, of this generator and scale.

    Raises:
        AppError: if there are tables that the blog did not make, which it must not touch.
    """
    tables = set(inspect(connection).get_table_names())
    if not tables:
        return False
    foreign = tables - Base.metadata.tables.keys() - {_VERSIONS.name}
    if foreign or _VERSIONS.name not in tables:
        url = connection.engine.url.render_as_string()
        raise AppError(say("blog.foreign_tables", url=url, tables=", ".join(sorted(foreign or tables))))
    found = connection.execute(select(_VERSIONS)).first()
    return found is not None and tuple(found) == (generator.VERSION, generator.SEED, scale)


def _replace_file(path: Path, scale: int, progress: Progress) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.unlink(missing_ok=True)  # of a process that was killed
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = make_engine(URL.create("sqlite", database=str(unfinished)))
    try:
        with engine.connect() as connection:
            # Nothing to roll back to: a failure throws the whole file away.
            connection.execute(text("PRAGMA journal_mode = OFF"))
            connection.commit()
            _fill(connection, scale, progress)
            connection.commit()
        engine.dispose()
        unfinished.replace(path)
    finally:
        engine.dispose()
        unfinished.unlink(missing_ok=True)


def _fill(connection: Connection, scale: int, progress: Progress) -> None:
    """Make the tables anew and write every row in order, in chunks, then the version."""
    for metadata in (Base.metadata, _VERSIONS.metadata):
        metadata.drop_all(connection)
        metadata.create_all(connection)
    data = generator.generate(generator.SEED, scale)
    done, total = 0, sum(data.sizes.values())
    write = _copy if connection.dialect.name == "postgresql" else _insert
    for table in Base.metadata.sorted_tables:
        size = data.sizes[table.name]
        for start in range(0, size, CHUNK):
            stop = min(start + CHUNK, size)
            write(connection, table, data.rows(table.name, start, stop))
            done += stop - start
            progress(done, total)
    if connection.dialect.name == "postgresql":
        _continue_ids(connection)
    connection.execute(insert(_VERSIONS).values(version=generator.VERSION, seed=generator.SEED, scale=scale))


def _insert(connection: Connection, table: Table, rows: Iterator[generator.Row]) -> None:
    names = table.columns.keys()
    connection.execute(insert(table), [dict(zip(names, row, strict=True)) for row in rows])


def _copy(connection: Connection, table: Table, rows: Iterator[generator.Row]) -> None:
    names = ", ".join(table.columns.keys())
    cursor = connection.connection.cursor()
    with cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def _continue_ids(connection: Connection) -> None:
    """Let new rows follow the ids that were given."""
    for name in Base.metadata.tables:
        sequence = f"pg_get_serial_sequence('{name}', 'id')"
        connection.execute(text(f"SELECT setval({sequence}, (SELECT max(id) FROM {name}))"))


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold SQLite's own lock on a file: it works on every system and ends with the process that holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(lock, timeout=0.1, isolation_level=None)
    deadline = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                connection.execute("PRAGMA journal_mode = OFF")  # no second file: nothing is written
                connection.execute("BEGIN EXCLUSIVE")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
        yield
    finally:
        connection.close()


def _reason(error: Exception) -> str:
    """The driver's own words, in one line, as a part of a sentence."""
    cause = getattr(error, "orig", None) or error
    return " ".join(str(cause).split()).rstrip("?.")
