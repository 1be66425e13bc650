"""Statements and connections of SQLAlchemy engines, counted for the metrics and written to the log ``labkit.sql``."""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable
from functools import cache, lru_cache, partial
from math import inf
from time import perf_counter
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.pool import QueuePool

from labkit._text import say
from labkit.errors import MonitoringError

SLOW = 0.1  # seconds from which a statement is worth a warning
OPERATIONS = frozenset(
    (
        *("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"),
        *("CREATE", "ALTER", "DROP", "TRUNCATE", "SAVEPOINT", "RELEASE", "ROLLBACK"),
        *("CALL", "EXPLAIN", "PRAGMA", "SET", "SHOW", "OTHER"),
    )
)
POOL_STATES = ("checked_out", "checked_in", "overflow")
_SHOWN, _KEPT = 1_000, 10_000  # characters of a statement that the log shows, and of one worth remembering

_TOKEN = re.compile(
    r"""--[^\n]* | /\*.*?\*/            # comments
    | '(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | \[[^]]*\]   # strings and quoted names
    | \$(\w*)\$.*?\$\1\$               # PostgreSQL's strings
    | (?P<word>[A-Za-z_]\w*) | (?P<mark>[(),])""",
    re.DOTALL | re.VERBOSE,
)
_MAIN = frozenset(("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"))
_log = logging.getLogger("labkit.sql")


def operation(statement: str) -> str:
    """What a statement does: its first keyword, one of `OPERATIONS`.

    Comments and opening brackets before it are skipped. ``WITH ... SELECT`` is a ``SELECT``, ``WITH ... INSERT`` an
    ``INSERT``. What is not known is ``OTHER``.
    """
    return _remembered(statement) if len(statement) <= _KEPT else _read(statement)


def _read(statement: str) -> str:
    depth, before, common = 0, "", None  # depth of the brackets where WITH was
    for token in _TOKEN.finditer(statement):
        word, mark = token["word"], token["mark"]
        if mark:
            depth += {"(": 1, ")": -1, ",": 0}[mark]
        elif word:
            word = word.upper()
            if common is None and word != "WITH":
                return word if word in OPERATIONS else "OTHER"
            # The name of a common table expression may be any word: UPDATE is none of PostgreSQL's reserved ones.
            if depth == common and word in _MAIN and before not in ("WITH", "RECURSIVE", ","):
                return word
            common = depth if common is None else common
        before = mark or word or before
    return "OTHER"


_remembered = lru_cache(1_000)(_read)


class DatabaseWatch:
    """Listens to engines: each statement that is sent counts, whether it succeeds or not.

    Args:
        count: called with the operation of each statement.
        slow: seconds from which a statement is written to the log as a warning.
    """

    def __init__(self, count: Callable[[str], object], *, slow: float = SLOW) -> None:
        self._count, self._slow = count, slow
        self._engines: weakref.WeakKeyDictionary[Engine, Callable[[], None]] = weakref.WeakKeyDictionary()

    def watch(self, engine: Any) -> Callable[[], None]:
        """Listen to an engine, sync or async, until what is returned is called. Twice is once.

        Raises:
            MonitoringError: if it is no engine.
        """
        engine = getattr(engine, "sync_engine", engine)
        if not isinstance(engine, Engine):
            raise MonitoringError(say("metrics.no_engine", type=type(engine).__name__))
        if (known := self._engines.get(engine)) is not None:
            return known
        _stamp_all()
        listeners: dict[str, Callable[..., None]] = {
            "before_cursor_execute": self._before,
            "after_cursor_execute": self._after,
            "handle_error": self._failed,
        }
        for name, listener in listeners.items():
            event.listen(engine, name, listener)
        end = self._engines[engine] = partial(self._end, weakref.ref(engine), listeners)
        return end

    def _end(self, reference: weakref.ref[Engine], listeners: dict[str, Callable[..., None]]) -> None:
        engine = reference()
        if engine is not None and self._engines.pop(engine, None) is not None:
            for name, listener in listeners.items():
                event.remove(engine, name, listener)

    def connections(self, state: str) -> int:
        """Connections of all pools that are ``checked_out``, ``checked_in`` or ``overflow``, beyond the pool's size.

        Engines that keep no queue of connections (NullPool, StaticPool, SingletonThreadPool) have none.
        """
        name = state.replace("_", "")  # SQLAlchemy writes checkedout
        return sum(max(0, getattr(pool, name)()) for pool in self._pools())

    def limit(self) -> float:
        """Connections that all pools together may have at once; infinite if one of them has no limit."""
        most = [(pool.size(), pool._max_overflow) for pool in self._pools()]  # no public name for the second
        return inf if any(extra < 0 for _, extra in most) else sum(map(sum, most))

    def _pools(self) -> list[QueuePool]:
        engines = [reference() for reference in self._engines.keyrefs()]  # asked in one thread, watched in another
        return [engine.pool for engine in engines if engine is not None and isinstance(engine.pool, QueuePool)]

    def _before(self, connection: Any, cursor: Any, sql: str, values: Any, context: Any, many: bool) -> None:
        self._count(operation(sql))

    def _after(self, connection: Any, cursor: Any, sql: str, values: Any, context: Any, many: bool) -> None:
        seconds = perf_counter() - context._labkit_began
        if seconds >= self._slow:
            _write(logging.WARNING, "slow statement", sql, seconds)
        elif _log.isEnabledFor(logging.DEBUG):
            _write(logging.DEBUG, "statement", sql, seconds)

    def _failed(self, failure: Any) -> None:
        context = failure.execution_context
        if hasattr(context, "_labkit_began"):
            self._after(None, None, failure.statement or "", None, context, False)


def _stamp(connection: Any, cursor: Any, sql: str, values: Any, context: Any, many: bool) -> tuple[str, Any]:
    context._labkit_began = perf_counter()
    return sql, values


@cache
def _stamp_all() -> None:
    """Note when a statement begins: on all engines and first in line, so that a simulated latency is measured too."""
    event.api._event_key(Engine, "before_cursor_execute", _stamp).base_listen(insert=True)  # type: ignore[type-var]


def _write(level: int, what: str, sql: str, seconds: float) -> None:
    """The text of a statement, never its values."""
    text = " ".join(sql[:_SHOWN].split())
    _log.log(level, "%s, %.1f ms: %s", what, seconds * 1e3, text, extra={"seconds": seconds})
