"""How the database finds the rows: EXPLAIN in words, and what PostgreSQL knows of its own work.

SQLite tells its plan without running the statement. On PostgreSQL a SELECT is run and measured (ANALYZE,
BUFFERS), anything else only planned, unless ``analyze`` says otherwise; whatever ran is rolled back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
from sqlalchemy import Connection, Engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import greenlet_spawn

from labkit._html import Safe, card, code, join, tag
from labkit._text import duration, say
from labkit.errors import MeasurementError
from labkit.plots import GREEN, ORANGE, VERMILION
from labkit.profiling._capture import Statement

_STEP = re.compile(r"(SCAN|SEARCH) (\w+)(?: USING (.*?)(?:INDEX ?(\w*)|PRIMARY KEY))?(?: \(|$)")
_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)
_ACTIVITY = """
    SELECT pid, state, wait_event_type, wait_event, left(query, 500) AS query,
           extract(epoch FROM clock_timestamp() - query_start)::float AS seconds
    FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    ORDER BY query_start"""
_TOP = """
    SELECT calls, total_exec_time AS total_ms, mean_exec_time AS mean_ms, rows, left(query, 500) AS query
    FROM pg_stat_statements JOIN pg_database ON pg_database.oid = dbid
    WHERE datname = current_database() AND query NOT ILIKE '%password%'
    ORDER BY total_exec_time DESC LIMIT :most"""


@dataclass(frozen=True)
class Step:
    """One access to a table.

    ``how`` is ``scan`` (every row), ``walk`` (an index entry by entry), ``seek`` (straight to the rows by an
    index or key), ``cover`` (the index alone answers) or ``build`` (SQLite makes an index for this statement
    alone). ``rows`` are those looked at, None if not known; ``detail`` is the database's own wording.
    """

    how: str
    table: str
    index: str
    rows: int | None
    detail: str

    def __str__(self) -> str:
        how = "scan_all" if self.how == "scan" and self.rows is None else self.how
        return f"{self.detail}: {say(f'profiling.plan_{how}', index=self.index, rows=self.rows or 0)}"


@dataclass(frozen=True)
class Plan:
    """What the database does for a statement.

    ``text`` is the plan in its own words; ``ms`` the time measured and ``pages`` the pages of 8 KiB touched,
    both None where the statement was not run.
    """

    sql: str
    text: str
    steps: tuple[Step, ...]
    ms: float | None = None
    pages: int | None = None

    @property
    def scans(self) -> tuple[str, ...]:
        """The tables that are read from end to end."""
        return tuple(dict.fromkeys(step.table for step in self.steps if step.how in ("scan", "build")))

    @property
    def walks(self) -> tuple[str, ...]:
        """The tables that are read along an index from its first entry on: right for an order or a count of all,
        wrong where the statement looks for some rows and the index begins with another column."""
        return tuple(dict.fromkeys(step.table for step in self.steps if step.how == "walk"))

    @property
    def indexes(self) -> tuple[str, ...]:
        """The indexes used, primary keys without a name of their own left out."""
        return tuple(dict.fromkeys(step.index for step in self.steps if step.index))

    @property
    def says(self) -> str:
        """The plan as a sentence."""
        parts = [str(step) for step in self.steps] or [say("profiling.plan_no_table")]
        if self.ms is not None:
            parts.append(say("profiling.plan_measured", time=duration(self.ms / 1e3), pages=self.pages))
        return "; ".join(parts) + "."

    @property
    def df(self) -> pd.DataFrame:
        """One row an access to a table."""
        return pd.DataFrame([asdict(step) for step in self.steps], columns=list(Step.__annotations__))

    def __repr__(self) -> str:
        return f"Plan: {self.says}"

    def _repr_html_(self) -> Safe:
        lines = join(tag("div", line) for line in self.says.removesuffix(".").split("; "))
        colour, symbol = (VERMILION, "▲") if self.scans else (ORANGE, "◆") if self.walks else (GREEN, "●")
        return card(code(" ".join(self.sql.split())), lines, colour=colour, symbol=symbol, note=tag("pre", self.text))


def explain(database: Engine | Connection, statement: Any, parameters: Any = None, analyze: bool | None = None) -> Plan:
    """Ask the database how it runs a statement.

    It asks in the thread of the caller and has no time limit: what ``analyze`` runs takes as long as it takes, or until
    the cell is interrupted.

    Args:
        database: an engine or connection; with an async one ``await connection.run_sync(explain, ...)``.
        statement: SQL text, something made with SQLAlchemy's functions, or a `Statement` of a report.
        parameters: a dict for ``:name`` in text, a tuple for the driver's own placeholders.
        analyze: PostgreSQL: run it and measure; None for a SELECT only. What it changed is rolled back.

    Raises:
        MeasurementError: if the database is neither SQLite nor PostgreSQL, or refuses the statement.
    """
    with _connected(database, "sqlite", "postgresql") as connection:
        if connection.dialect.name == "sqlite":
            return _sqlite_plan(connection, *_ask(connection, "EXPLAIN QUERY PLAN", statement, parameters))
        if analyze is None:
            sql = getattr(statement, "sql", str(statement))
            analyze = getattr(statement, "is_select", False) or not _WRITES.search(sql)
        command = f"EXPLAIN ({'ANALYZE, BUFFERS, ' if analyze else ''}FORMAT JSON)"
        return _postgres_plan(*_ask(connection, command, statement, parameters))


async def explain_async(engine: Any, statement: Any, parameters: Any = None) -> Plan:
    """`explain` for an engine whose driver is asynchronous; to be awaited in the loop that uses it."""
    return await greenlet_spawn(explain, getattr(engine, "sync_engine", engine), statement, parameters)


def activity(database: Engine | Connection) -> pd.DataFrame:
    """What the other connections to this PostgreSQL database do now: state, what they wait for, query, time.

    Raises:
        MeasurementError: if it is not PostgreSQL.
    """
    with _connected(database, "postgresql") as connection:
        return pd.read_sql(text(_ACTIVITY), connection)


def top_statements(database: Engine | Connection, most: int = 10) -> pd.DataFrame:
    """The statements on which this PostgreSQL database spent most time: calls, milliseconds, rows.

    Raises:
        MeasurementError: if it is not PostgreSQL, or the extension pg_stat_statements is not there.
    """
    with _connected(database, "postgresql") as connection:
        if not connection.scalar(text("SELECT count(*) FROM pg_extension WHERE extname = 'pg_stat_statements'")):
            raise MeasurementError(say("profiling.no_statistics"))
        return pd.read_sql(text(_TOP), connection, params={"most": most})


@contextmanager
def _connected(database: Any, *dialects: str) -> Iterator[Connection]:
    """A connection inside a transaction that is rolled back."""
    if not isinstance(database, Engine | Connection):
        raise MeasurementError(say("profiling.plan_engine", kind=type(database).__name__))
    if database.dialect.name not in dialects:
        raise MeasurementError(say("profiling.plan_dialect", dialect=database.dialect.name, known=", ".join(dialects)))
    with ExitStack() as stack:
        connection = stack.enter_context(database.connect()) if isinstance(database, Engine) else database
        transaction = connection.begin_nested() if connection.in_transaction() else connection.begin()
        stack.callback(transaction.rollback)
        try:
            yield connection
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip()
            raise MeasurementError(say("profiling.plan_refused", reason=reason)) from error


class _Answer(Exception):
    """Carries the plan out before SQLAlchemy takes it for the rows of the statement."""


def _ask(connection: Connection, command: str, statement: Any, parameters: Any) -> tuple[str, Any]:
    """Send a statement with EXPLAIN put before its text: the statement as sent, and the rows of the plan."""

    def before(_: Any, cursor: Any, sql: str, values: Any, context: Any, many: bool) -> tuple[str, Any]:
        return f"{command} {sql}", values

    def after(_: Any, cursor: Any, sql: str, values: Any, context: Any, many: bool) -> None:
        raise _Answer(sql.removeprefix(command).strip(), cursor.fetchall())

    event.listen(connection, "before_cursor_execute", before, retval=True)
    event.listen(connection, "after_cursor_execute", after)
    try:
        if isinstance(statement, Statement):
            connection.exec_driver_sql(statement.sql, parameters or statement.values or None)
        elif isinstance(statement, str) and parameters and ("%(" in statement or not isinstance(parameters, dict)):
            connection.exec_driver_sql(statement, parameters)
        else:
            connection.execute(text(statement) if isinstance(statement, str) else statement, parameters or {})
    except _Answer as answer:
        return answer.args[0], answer.args[1]
    finally:
        event.remove(connection, "before_cursor_execute", before)
        event.remove(connection, "after_cursor_execute", after)
    raise MeasurementError(say("profiling.plan_refused", reason=statement))


def _sqlite_plan(connection: Connection, sql: str, rows: Any) -> Plan:
    tables = set(connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars())
    steps, lines, depth = [], [], {0: 0}
    for number, parent, _, detail in rows:
        depth[number] = depth.get(parent, 0) + 1
        lines.append("  " * (depth[number] - 1) + detail)
        if (found := _STEP.match(detail)) is None:
            continue
        verb, name, using, index = found.groups()
        if name not in tables:  # an alias, or else a subquery
            before = re.findall(rf'(\w+)"?\s+(?:AS\s+)?"?{name}\b', sql, re.IGNORECASE)
            name = next((one for one in before if one in tables), None)
        if name is None:
            continue
        how = "seek" if verb == "SEARCH" else "scan" if using is None else "walk"
        if "AUTOMATIC" in (using or ""):
            how = "build"
        elif "COVERING" in (using or "") and how == "seek":
            how = "cover"
        count = connection.execute(text(f'SELECT count(*) FROM "{name}"')).scalar() if how == "scan" else None
        steps.append(Step(how, name, index or "", count, detail))
    return Plan(sql, "\n".join(lines), tuple(steps))


def _postgres_plan(sql: str, rows: Any) -> Plan:
    answer = rows[0][0][0]
    steps: list[Step] = []
    lines: list[str] = []

    def visit(node: dict[str, Any], depth: int, table: str) -> None:
        kind, index, table = node["Node Type"], node.get("Index Name", ""), node.get("Relation Name", table)
        detail = f"{kind}{f' {table}' if table else ''}{f' USING {index}' if index else ''}"
        rows = None
        if "Actual Rows" in node:
            rows = round((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])
        lines.append("  " * depth + detail + (f" ({rows:,} rows)" if rows is not None else ""))
        if kind == "Seq Scan" or index:
            seek = "cover" if kind == "Index Only Scan" else "seek"
            how = "scan" if not index else seek if "Index Cond" in node else "walk"
            steps.append(Step(how, table, index, rows, detail))
        for child in node.get("Plans", ()):
            visit(child, depth + 1, table if kind == "Bitmap Heap Scan" else "")

    root = answer["Plan"]
    visit(root, 0, "")
    ms = answer.get("Execution Time")
    pages = None if ms is None else root["Shared Hit Blocks"] + root["Shared Read Blocks"]
    return Plan(sql, "\n".join(lines), tuple(steps), ms, pages)
