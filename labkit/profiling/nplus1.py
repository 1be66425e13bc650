"""Find N+1: one line that asks the database the same question again and again, about another row each time.

The rule: the same statement (its values apart) from the same line at least five times in one request, with
different parameters. Not N+1, though they repeat: executemany, an IN list cut into pieces, paging, a retry
(same parameters) and a helper that different lines call once each.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Select, Table
from sqlalchemy.sql import visitors

from labkit._frames import place
from labkit._text import say

if TYPE_CHECKING:
    from labkit.profiling._capture import Statement

LEAST = 5  # repetitions that make a finding

_NAME = r"""(?:[A-Za-z_]\w*|"[^"]*"|`[^`]*`)"""
_TOKEN = re.compile(
    rf"""(?P<comment>--[^\n]*|/\*.*?\*/)
    |(?P<literal>'(?:[^']|'')*'|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    |(?P<mark>\?\d*|%\(\w+\)s|%s|\$\d+|(?<!:):[A-Za-z_]\w*)(?:::\w+)*
    |(?P<name>{_NAME}(?:\.{_NAME})*)
    |(?P<op><>|[<>!=]=?|[(),])""",
    re.VERBOSE | re.DOTALL,
)
_ROW = r"\(\?(?:, ?\?)*\)"
_LISTS = re.compile(rf"\b(IN|ANY|ALL) ?\((?:\?|{_ROW})(?:, ?(?:\?|{_ROW}))*\)", re.IGNORECASE)
_ROWS = re.compile(rf"\bVALUES {_ROW}(?:, ?{_ROW})+", re.IGNORECASE)
_VERBS = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "REPLACE", "MERGE")
_AGGREGATE = re.compile(r"\b(count|sum|avg|min|max)\((.*?)\)", re.IGNORECASE)


class Slot(NamedTuple):
    """A value in a statement: its role (``= < in limit offset other``), the column that it is compared with,
    and where it stands: the text of a literal, or else the name or position of a parameter."""

    role: str
    column: str
    literal: str | None
    key: str | int


class Shape(NamedTuple):
    """A statement without its values, and the places of these."""

    fingerprint: str
    slots: tuple[Slot, ...]


@lru_cache(maxsize=4096)
def shape(sql: str) -> Shape:
    """Tell a statement from its values, be they parameters or literals written into the text."""
    found = [match for match in _TOKEN.finditer(sql) if match.lastgroup != "comment"]
    words = [(match.lastgroup, match.group("mark") or match.group()) for match in found]
    slots: list[Slot] = []
    parens: list[tuple[str, str]] = []  # what each open parenthesis stands for, and the column before it
    position = 0
    for i, (kind, text) in enumerate(words):
        before = words[i - 1][1].upper() if i else ""
        role, column = parens[-1] if parens else ("", "")
        if text == "(":
            if before in ("IN", "ANY", "ALL"):
                role, column = "in", words[i - 2][1] if i > 1 and words[i - 2][0] == "name" else ""
            elif before[:1] in ("<", ">"):
                role = "<"
            parens.append((role, column))
        elif text == ")" and parens:
            parens.pop()
        elif text.upper() == "SELECT" and parens:
            parens[-1] = ("", "")  # a subquery, not a list
        elif kind in ("mark", "literal"):
            after = words[i + 1 : i + 3]
            if not role:
                role = "other"
                if before in ("LIMIT", "FIRST", "NEXT", "OFFSET"):
                    role = "offset" if before == "OFFSET" else "limit"
                elif before in ("=", "==", "<", ">", "<=", ">="):
                    role = before[0].replace(">", "<")
                    column = words[i - 2][1] if i > 1 and words[i - 2][0] == "name" else ""
                elif len(after) == 2 and after[1][0] == "name" and after[0][1] in ("=", "<", ">", "<=", ">="):
                    role, column = after[0][1][0].replace(">", "<"), after[1][1]
            key: str | int = position
            if kind == "mark":
                bare = (
                    text.lstrip("?$:%(").removesuffix("s").removesuffix(")") if text[0] == "%" else text[1:]
                )
                key = int(bare) - 1 if bare.isdigit() else bare or position
                position += 1
            slots.append(Slot(role, column, text if kind == "literal" else None, key))
    plain = " ".join(_TOKEN.sub(_blank, sql).split())
    if _ROWS.search(plain):  # many rows in one INSERT
        slots = [slot._replace(role="in") for slot in slots]
    return Shape(_ROWS.sub("VALUES (…)", _LISTS.sub(r"\1 (…)", plain)), tuple(slots))


def _blank(match: re.Match[str]) -> str:
    kind = match.lastgroup
    return match.group() if kind in ("name", "op") else " " if kind == "comment" else "?"


@dataclass(frozen=True)
class Finding:
    """A line of code that repeats a statement.

    ``kind`` is ``"n+1"``; it ran ``count`` times from ``line`` of ``file``, ``elapsed`` seconds in all;
    ``sql`` is the statement without its values, ``fix`` the query or the option that replaces it.
    """

    kind: str
    count: int
    file: str
    line: int
    sql: str
    fix: str
    elapsed: float = 0.0

    @property
    def place(self) -> str:
        """``app/routers/users.py:12`` or ``celda [5], línea 6``."""
        return place(self.file, self.line) if self.file else say("profiling.no_place")

    @property
    def says(self) -> str:
        """The finding as a sentence."""
        return say("profiling.n_plus_one", count=self.count, place=self.place)

    def __str__(self) -> str:
        head = say("profiling.n_plus_one_short", kind=self.kind, count=self.count, place=self.place)
        return f"{head} → {self.fix}"


class _Call(NamedTuple):
    """A statement with its values: the single ones, and those of IN lists."""

    statement: Statement
    slots: tuple[Slot, ...]
    single: tuple[Any, ...]
    listed: tuple[Any, ...]


def _call(statement: Statement) -> _Call:
    given, slots = statement.values, shape(statement.sql).slots
    marks = {slot.key for slot in slots if slot.literal is None}
    if len(marks) != len(given or ()):  # not understood: compare the parameters as a whole
        return _Call(statement, (Slot("other", "", None, 0),), (repr(given) + statement.sql,), ())
    values = [_number(s.literal) if s.literal is not None else given[s.key] for s in slots]
    pairs = list(zip(slots, values, strict=True))
    single = [(slot, value) for slot, value in pairs if slot.role != "in"]
    listed: list[Any] = []
    for slot, value in pairs:
        if slot.role == "in":
            listed.extend(value if isinstance(value, list | tuple) else [value])
    return _Call(
        statement,
        tuple(s for s, _ in single),
        tuple(_plain(v) for _, v in single),
        tuple(map(_plain, listed)),
    )


def _number(text: str) -> Any:
    return text if text.startswith("'") else float(text)


def _plain(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def find(statements: Sequence[Statement]) -> tuple[Finding, ...]:
    """The findings among the statements of one request, in the order in which they first ran."""
    groups: dict[tuple[str, Any], list[_Call]] = defaultdict(list)
    for one in statements:
        fingerprint = shape(one.sql).fingerprint
        if not one.many and one.error is None and fingerprint.lstrip("( ").upper().startswith(_VERBS):
            groups[fingerprint, one.site and one.site[:2]].append(_call(one))
    findings = []
    chains: dict[Any, str] = {}
    for (fingerprint, site), calls in groups.items():
        paths = Counter(call.statement.path for call in calls)
        looped = [
            call for call in calls if paths[call.statement.path] > 1
        ]  # not a helper called from here and there
        if len(looped) < LEAST or not (varying := _varying(looped)):
            continue
        file, line = site or ("", 0)
        elapsed = sum(call.statement.elapsed for call in looped)
        fix = _fix(looped[0].statement, fingerprint, varying, chains)
        findings.append(Finding("n+1", len(looped), file, line, fingerprint, fix, elapsed))
    return tuple(findings)


def _varying(calls: list[_Call]) -> tuple[Slot, ...]:
    """The slots whose values change from call to call; empty if that is no N+1."""
    columns = list(zip(*(call.single for call in calls), strict=True))
    varying = [i for i, values in enumerate(columns) if len(set(values)) > 1]
    slots = tuple(calls[0].slots[i] for i in varying)
    lists = [call.listed for call in calls]
    if not varying:
        if len(set(lists)) < 2 or _pieces(lists):
            return ()
        return tuple(slot for slot in shape(calls[0].statement.sql).slots if slot.role == "in")[:1]
    return () if _paging(calls, varying) else slots


def _pieces(lists: list[tuple[Any, ...]]) -> bool:
    """Whether the IN lists are one long list cut into pieces of the same length, the last one shorter."""
    sizes = [len(one) for one in lists]
    disjoint = len({value for one in lists for value in one}) == sum(sizes)
    return (
        sizes[0] > 1
        and set(sizes[:-1]) == {sizes[0]}
        and sizes[-1] <= sizes[0]
        and (disjoint or sizes[0] >= 10)
    )


def _paging(calls: list[_Call], varying: list[int]) -> bool:
    """Whether the calls fetch a long result page by page: by OFFSET, or going on after the last key seen."""
    roles = [slot.role for slot in calls[0].slots]
    limits = [value for role, value in zip(roles, calls[0].single, strict=True) if role == "limit"]
    keys = [i for i in varying if roles[i] == "<"]
    moving = keys + [i for i in varying if roles[i] == "offset"]
    if not limits or not moving:
        return False
    for call in calls:  # "a > x OR (a = x AND b > y)": an equality may repeat a key
        known = {call.single[i] for i in keys}
        if any(roles[i] not in ("<", "offset", "limit") and call.single[i] not in known for i in varying):
            return False
    try:
        column = [call.single[moving[0]] for call in calls]
        if column not in (sorted(column), sorted(column, reverse=True)) or not limits[0] > 1:
            return False
    except TypeError:
        return False
    return all(call.statement.rows is None or call.statement.rows >= limits[0] for call in calls[:-2])


class _Names:
    """Turns names in SQL into those of the user's Python: ``comments.post_id`` into ``Comment.post_id``."""

    def __init__(self, sql: str, clause: Any) -> None:
        self._alias = {alias: name for name, alias in re.findall(r"([\w.]+) AS (\w+)", sql, re.IGNORECASE)}
        self._mappers: dict[str, Any] = {}
        self._tables: set[str] = set()
        for element in visitors.iterate(clause):
            mapper = element._annotations.get("parententity")
            if mapper is not None and hasattr(mapper := mapper.mapper, "local_table"):
                self._mappers[mapper.local_table.name] = mapper
            if isinstance(element, Table):
                self._tables.add(element.name)

    def table(self, name: str) -> str:
        name = self._alias.get(name, name)
        return self._mappers[name].class_.__name__ if name in self._mappers else name

    def column(self, text: str) -> str:
        *_, table, name = ["", *text.replace('"', "").replace("`", "").split(".")]
        table = self._alias.get(table, table)
        mapper = self._mappers.get(table)
        if mapper is not None and name in mapper.local_table.c:
            return f"{mapper.class_.__name__}.{mapper.get_property_by_column(mapper.local_table.c[name]).key}"
        return f"{table}.c.{name}" if table in self._tables else text


def _fix(statement: Statement, fingerprint: str, varying: tuple[Slot, ...], chains: dict[Any, str]) -> str:
    compiled, lazy = statement.origin
    clause = getattr(compiled, "statement", None)
    options = getattr(clause, "_compile_options", None)
    relation = getattr(getattr(options, "_current_path", None), "prop", None)
    if lazy and relation is not None:
        fix = f"selectinload({relation.parent.class_.__name__}.{relation.key})"
        if relation.parent in chains and relation.parent is not relation.mapper:
            fix = f"{chains[relation.parent]}.{fix}"
        chains[relation.mapper] = fix
        return fix
    keys = [slot.column for slot in varying if slot.role in ("=", "in") and slot.column]
    verb = fingerprint.split()[0].upper()
    if clause is None or not hasattr(clause, "get_children") or clause.__visit_name__ == "textclause":
        return _raw_fix(fingerprint, verb, keys)
    return _expression_fix(clause, statement.sql, verb, keys, _Names(fingerprint, clause))


def _raw_fix(fingerprint: str, verb: str, keys: list[str]) -> str:
    """The replacing query of a statement written as text."""
    if verb in ("INSERT", "UPDATE", "REPLACE"):
        return f"execute(text('{fingerprint[:40]}…'), rows)"
    if not keys:
        return say("profiling.fix_in_general")
    grouped = re.sub(
        rf"(?:\? = {re.escape(keys[0])}|{re.escape(keys[0])} (?:=+ \?|IN \(…\)))",
        f"{keys[0]} IN (…)",
        fingerprint,
    )
    if verb != "SELECT" or keys[0].split(".")[-1] in grouped.partition(" FROM ")[0] or "*" in grouped[:9]:
        return grouped
    end = f" GROUP BY {keys[0]}" if _AGGREGATE.search(grouped.partition(" FROM ")[0]) else ""
    return f"{grouped[:7]}{keys[0]}, {grouped[7:]}{end}"


def _expression_fix(clause: Any, sql: str, verb: str, keys: list[str], names: _Names) -> str:
    """The replacing query of a statement written with SQLAlchemy's functions."""
    columns = [names.column(key) for key in keys]
    where = f"{columns[0]}.in_(ids)" if len(columns) == 1 else f"tuple_({', '.join(columns)}).in_(keys)"
    if verb in ("INSERT", "UPDATE"):
        return f"execute({verb.lower()}({names.table(clause.table.name)}), rows)"
    if not columns:
        return say("profiling.fix_in_general")
    if verb == "DELETE":
        return f"delete({names.table(clause.table.name)}).where({where})"
    head = re.split(r"\s+FROM\s", sql, maxsplit=1)[0]
    totals = [
        f"func.{name.lower()}({names.column(inner) if '.' in inner and name.lower() != 'count' else ''})"
        for name, inner in _AGGREGATE.findall(head)
    ]
    if totals:
        return f"select({', '.join(columns + totals)}).where({where}).group_by({', '.join(columns)})"
    described = clause.column_descriptions if isinstance(clause, Select) else []
    entities = [d["name"] for d in described if d.get("entity") is not None and d["expr"] is d["entity"]]
    if entities:
        return f"select({', '.join(entities)}).where({where})"
    own = [names.column(name) for name in re.findall(r"[\w\"]+\.[\w\"]+", head)]
    wanted = [*columns, *(name for name in own if name not in columns)]
    return f"select({', '.join(wanted[:4])}{', ...' if len(wanted) > 4 else ''}).where({where})"
