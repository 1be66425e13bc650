"""Listens to SQLAlchemy: every statement with its time, its rows and the user's line, for who asks for it.

What ``Statement.elapsed`` covers: from the moment SQLAlchemy hands the statement to the driver (a simulated
latency included) until the driver returns, plus the time inside the driver's fetch calls. SQLite computes
rows while they are fetched, so the first part alone would undercount. Not covered: waiting for a connection,
building SQL, making objects of the rows. BEGIN and COMMIT are not statements; SAVEPOINT is.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.engine.cursor import _DEFAULT_FETCH as _fetch
from sqlalchemy.engine.cursor import CursorFetchStrategy

from labkit._frames import Site
from labkit.profiling._stack import stack

SHORT, MANY = 40, 20  # characters of a parameter, and values of a list of them, that a report shows


@dataclass(frozen=True)
class Statement:
    """One round trip to the database.

    ``elapsed`` and ``start`` are seconds, ``start`` since the recording began. ``rows`` counts the rows
    fetched or, where nothing is returned, the rows changed; None if the driver does not say (INSERT ...
    RETURNING of many rows). ``many`` marks an executemany, which is one statement. ``values`` are the
    parameters as the driver got them (the first row of an executemany), ``parameters`` the same, shortened.
    ``path`` identifies the calls in the user's code that led here; ``origin`` is what SQLAlchemy compiled and
    whether the access to an attribute asked for it; ``database`` is the engine that ran it.
    """

    sql: str
    parameters: Any
    elapsed: float
    rows: int | None
    site: Site | None
    engine: str
    many: bool
    start: float
    error: str | None = None
    values: Any = field(default=(), repr=False)
    path: frozenset[tuple[int, int]] = field(default=frozenset(), repr=False)
    origin: tuple[Any, bool] = field(default=(None, False), repr=False, compare=False)
    database: Engine | None = field(default=None, repr=False, compare=False)


@dataclass(init=False, eq=False, repr=False, slots=True)
class Shot(CursorFetchStrategy):
    """What is noted while a statement runs; all that can wait is worked out in the report.

    SQLAlchemy fetches a result's rows through a strategy. The shot itself takes its place where it can, for a proxy
    of the cursor costs as much as all the rest. (Rows that somebody takes from ``result.cursor`` are not seen.)
    """

    sql: str
    values: Any
    many: bool
    engine: Engine
    compiled: Any
    lazy: bool
    start: float
    stop: float | None
    fetching: float
    rows: Any
    error: str | None
    stack: list[Any]
    template: Any

    def fetchone(self, result: Any, dbapi_cursor: Any, hard_close: bool = False) -> Any:
        start = perf_counter()
        row = _fetch.fetchone(result, dbapi_cursor, hard_close)
        self.fetching += perf_counter() - start
        if row is not None:
            self.rows += 1
        return row

    def fetchall(self, result: Any, dbapi_cursor: Any) -> Any:
        return self.several(_fetch.fetchall, result, dbapi_cursor)

    def fetchmany(self, result: Any, dbapi_cursor: Any, size: int | None = None) -> Any:
        return self.several(_fetch.fetchmany, result, dbapi_cursor, size)

    def several(self, fetch: Callable[..., Any], *arguments: Any) -> Any:
        """What ``fetch`` gives; its rows and its time are counted."""
        start = perf_counter()
        rows = fetch(*arguments)
        self.fetching += perf_counter() - start
        self.rows += len(rows)
        return rows

    def yield_per(self, result: Any, dbapi_cursor: Any, num: int) -> None:
        _fetch.yield_per(result, _Cursor(dbapi_cursor, self), num)


class _Cursor:
    """Stands before the DBAPI cursor of a result that SQLAlchemy fetches in another way: streams, RETURNING."""

    def __init__(self, cursor: Any, shot: Shot) -> None:
        self.__dict__.update(_cursor=cursor, _shot=shot)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cursor, name, value)

    def fetchone(self) -> Any:
        start = perf_counter()
        row = self._cursor.fetchone()
        self._shot.fetching += perf_counter() - start
        self._shot.rows += row is not None
        return row

    def fetchmany(self, *size: int) -> Any:
        return self._shot.several(self._cursor.fetchmany, *size)

    def fetchall(self) -> Any:
        return self._shot.several(self._cursor.fetchall)


# The lists to append to: who listens in this context, tasks and threadpool workers started in it included.
_sinks: ContextVar[tuple[list[Shot], ...]] = ContextVar("labkit_queries", default=())


def _before(connection: Any, cursor: Any, sql: str, values: Any, context: Any, many: bool) -> tuple[str, Any]:
    if not (sinks := _sinks.get()):
        return sql, values
    context._labkit_shot = shot = Shot()
    shot.sql, shot.many, shot.engine, shot.compiled = sql, many, connection.engine, context.compiled
    shot.values = values[0] if many and isinstance(values, list) and values else values
    shot.stop = shot.error = shot.rows = None
    shot.fetching = 0.0
    options = context.execution_options.get("_sa_orm_load_options")
    shot.lazy = options is not None and options._lazy_loaded_from is not None
    shot.stack, shot.template = stack(sql, 5 if context.compiled is None else 7)  # SQLAlchemy's frames, at least
    for sink in sinks:
        sink.append(shot)
    shot.start = perf_counter()
    return sql, values


def _after(connection: Any, cursor: Any, sql: str, values: Any, context: Any, many: bool) -> None:
    shot = getattr(context, "_labkit_shot", None)
    if shot is None:
        return
    shot.stop = perf_counter()
    if cursor.description is None:
        shot.rows = cursor.rowcount if cursor.rowcount >= 0 else None
    elif not many:
        shot.rows = 0
        if (
            context.cursor_fetch_strategy is _fetch
            and not context.is_crud
            and not context._is_server_side
            and "stream_results" not in context.execution_options
        ):
            context.cursor_fetch_strategy = shot
        else:
            context.cursor = _Cursor(cursor, shot)


def _failed(failure: Any) -> None:
    shot = getattr(failure.execution_context, "_labkit_shot", None)
    if shot is not None:
        shot.stop, shot.error = perf_counter(), type(failure.original_exception).__name__


@functools.cache
def _install() -> None:
    """Listen to every engine of the process, once."""
    event.listen(Engine, "after_cursor_execute", _after)
    event.listen(Engine, "handle_error", _failed)
    # First in line, so that a simulated latency is measured; event.listen drops insert=True (2.1).
    event.api._event_key(Engine, "before_cursor_execute", _before).base_listen(insert=True)  # type: ignore[type-var]


@contextmanager
def listen(sink: list[Shot]) -> Iterator[None]:
    """Append a shot to ``sink`` for each statement of this context."""
    _install()
    token = _sinks.set((*_sinks.get(), sink))
    try:
        yield
    finally:
        _sinks.reset(token)


def statement(shot: Shot, began: float) -> Statement:
    """Work out what was noted; ``began`` is the clock's time when the recording began."""
    site = None
    if shot.stack:
        own, last = shot.stack[:2]
        position = next(itertools.islice(own.co_positions(), last // 2, None), (None,))
        site = Site(own.co_filename, position[0] or own.co_firstlineno, own.co_name)
        if shot.template is not None:
            site = Site(site.file, shot.template.get_corresponding_lineno(site.line), "template")
    return Statement(
        sql=shot.sql,
        parameters="…" if shot.engine.hide_parameters else _shorten(shot.values),
        elapsed=(shot.stop - shot.start if shot.stop is not None else 0.0) + shot.fetching,
        rows=shot.rows,
        site=site,
        engine=shot.engine.url.render_as_string(hide_password=True),
        many=shot.many,
        start=shot.start - began,
        error=shot.error,
        values=shot.values,
        path=frozenset(zip(map(id, shot.stack[::2]), shot.stack[1::2], strict=True)),
        origin=(shot.compiled, shot.lazy),
        database=shot.engine,
    )


def _shorten(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _shorten(value) for name, value in values.items()}
    if isinstance(values, tuple | list):
        few = tuple(_shorten(value) for value in values[:MANY])
        return few if len(values) <= MANY else (*few, "…")
    if values is None or isinstance(values, int | float):
        return values
    text = values if isinstance(values, str) else repr(values)
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"
