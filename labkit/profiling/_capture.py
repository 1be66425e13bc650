"""Listens to SQLAlchemy: every statement with its time, its rows and the user's line, for who asks for it.

What ``Statement.elapsed`` covers: from the moment SQLAlchemy hands the statement to the driver (a simulated
latency included) until the driver returns, plus the time inside the driver's fetch calls. SQLite computes
rows while they are fetched, so the first part alone would undercount. Not covered: waiting for a connection,
building SQL, making objects of the rows. BEGIN and COMMIT are not statements; SAVEPOINT is.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from types import CodeType, FrameType
from typing import Any

import greenlet  # type: ignore[import-untyped]
from sqlalchemy import event
from sqlalchemy.engine import Engine

from labkit._frames import Site, is_user_frame

SHORT, MANY = 40, 20  # characters of a parameter, and values of a list of them, that a report shows
_LIBRARY, _USER, _BORDER = 0, 1, 2
# Where a framework calls an endpoint: what lies further out (middleware) did not ask for the statement.
_BORDERS = ("/fastapi/routing.py", "/starlette/routing.py", "/labkit/asgi.py")


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


class Shot:
    """What is noted while a statement runs; all that can wait is worked out in the report."""

    __slots__ = (
        "compiled", "engine", "error", "fetching", "lazy", "many", "rows", "sql", "stack", "start", "stop",
        "template", "values",
    )  # fmt: skip

    def __init__(self, sql: str, values: Any, many: bool, engine: Engine, context: Any) -> None:
        self.sql, self.many, self.engine, self.compiled = sql, many, engine, context.compiled
        self.values = values[0] if many and isinstance(values, list) and values else values
        self.stop: float | None = None
        self.error: str | None = None
        self.rows: int | None = None
        self.fetching = 0.0
        options = context.execution_options.get("_sa_orm_load_options")
        self.lazy = options is not None and options._lazy_loaded_from is not None
        self.template: Any = None
        self.stack: list[tuple[CodeType, int]] = []
        # Frame objects cost most here. The innermost ones are SQLAlchemy's in any case: step over them.
        try:
            frame = sys._getframe(5)
            self._walk(sys._getframe(7) if frame.f_code.co_name == "_execute_on_connection" else frame)
        except ValueError:  # a greenlet's stack ends here
            self._walk(None)
        self.start = perf_counter()

    def _walk(self, frame: FrameType | None) -> None:
        """Note the user's frames from the inside out, as far as the framework that called the endpoint."""
        stack, kinds, here = self.stack, _kinds, greenlet.getcurrent()
        while True:
            while frame is not None:
                own = frame.f_code
                kind = kinds.get(own.co_filename)
                if kind is None:
                    kind = _kind(own.co_filename, frame.f_globals.get("__name__"))
                if kind:
                    if kind == _BORDER or len(stack) == 32:
                        return
                    if not stack:
                        self.template = frame.f_globals.get("__jinja_template__")
                    stack.append((own, frame.f_lasti))
                frame = frame.f_back
            # An async engine runs in a greenlet of its own: go on in the coroutine that is waiting for it.
            if here.parent is None:
                return
            here = here.parent
            frame = here.gr_frame


_kinds: dict[str, int] = {}


def _kind(filename: str, module: str | None) -> int:
    border = filename.replace("\\", "/").endswith(_BORDERS)
    kind = _BORDER if border else _USER if is_user_frame(filename, module) else _LIBRARY
    if not filename.startswith("<"):  # "<string>" depends on the module as well
        _kinds[filename] = kind
    return kind


class _Fetching:
    """Stands before a DBAPI cursor, counts the rows it hands out and the time that takes."""

    __slots__ = ("_cursor", "_shot")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cursor, name, value)

    def fetchone(self) -> Any:
        shot, start = self._shot, perf_counter()
        row = self._cursor.fetchone()
        shot.fetching += perf_counter() - start
        if row is not None:
            shot.rows += 1
        return row

    def fetchmany(self, *size: int) -> Any:
        return self._several(self._cursor.fetchmany, *size)

    def fetchall(self) -> Any:
        return self._several(self._cursor.fetchall)

    def _several(self, fetch: Callable[..., Any], *size: int) -> Any:
        shot, start = self._shot, perf_counter()
        rows = fetch(*size)
        shot.fetching += perf_counter() - start
        shot.rows += len(rows)
        return rows

    # What SQLAlchemy asks of every cursor, because __getattr__ takes a microsecond.

    @property
    def description(self) -> Any:
        return self._cursor.description

    def close(self) -> None:
        self._cursor.close()


_set_cursor, _set_shot = _Fetching._cursor.__set__, _Fetching._shot.__set__  # type: ignore[attr-defined]


# The lists to append to: who listens in this context, tasks and threadpool workers started in it included.
_sinks: ContextVar[tuple[list[Shot], ...]] = ContextVar("labkit_queries", default=())


def _before(connection: Any, cursor: Any, sql: str, values: Any, context: Any, many: bool) -> tuple[str, Any]:
    if sinks := _sinks.get():
        context._labkit_shot = shot = Shot(sql, values, many, connection.engine, context)
        for sink in sinks:
            sink.append(shot)
    return sql, values


def _after(connection: Any, cursor: Any, sql: str, values: Any, context: Any, many: bool) -> None:
    shot = getattr(context, "_labkit_shot", None)
    if shot is None:
        return
    shot.stop = perf_counter()
    if cursor.description is None:
        shot.rows = cursor.rowcount if cursor.rowcount >= 0 else None
    elif not shot.many:
        shot.rows = 0
        context.cursor = fetching = _Fetching()
        _set_cursor(fetching, cursor)
        _set_shot(fetching, shot)


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
        own, last = shot.stack[0]
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
        path=frozenset((id(own), last) for own, last in shot.stack),
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
