"""Find N+1: one line that asks the database the same question again and again, about another row each time.

The rule: the same statement (its values apart) from the same line at least five times in one request, with
different parameters. Not N+1, though they repeat: executemany, an IN list cut into pieces, paging, a retry
(same parameters) and a helper that different lines call once each.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit._frames import place
from labkit._text import say
from labkit.profiling._remedies import relation, remedy
from labkit.profiling._shapes import Slot, shape

if TYPE_CHECKING:
    from labkit.profiling._capture import Statement

LEAST = 5  # repetitions that make a finding
_VERBS = ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "REPLACE", "MERGE")


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
    try:
        values = [_number(s.literal) if s.literal is not None else given[s.key] for s in slots]
        understood = not slots or len({s.key for s in slots if s.literal is None}) == len(given or ())
    except (LookupError, TypeError):
        understood = False
    if not understood:  # compare the statements as a whole
        return _Call(statement, (Slot("other", "", None, 0),), (repr(given) + statement.sql,), ())
    pairs = list(zip(slots, values, strict=True))
    single = [(slot, _plain(value)) for slot, value in pairs if slot.role != "in"]
    lists = [value if isinstance(value, list | tuple) else [value] for slot, value in pairs if slot.role == "in"]
    listed = tuple(_plain(value) for values in lists for value in values)
    return _Call(statement, tuple(slot for slot, _ in single), tuple(value for _, value in single), listed)


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
        eager = not one.origin[1] and relation(one) is not None  # selectinload and its like are the cure
        if not one.many and not eager and one.error is None and fingerprint.lstrip("( ").upper().startswith(_VERBS):
            groups[fingerprint, one.site and one.site[:2]].append(_call(one))
    findings = []
    chains: dict[Any, str] = {}
    for (fingerprint, site), calls in groups.items():
        paths = Counter(call.statement.path for call in calls)
        looped = [call for call in calls if paths[call.statement.path] > 1]  # not a helper called from here and there
        if len(looped) < LEAST or not (varying := _varying(looped)):
            continue
        file, line = site or ("", 0)
        elapsed = sum(call.statement.elapsed for call in looped)
        keys = [slot.column for slot in varying if slot.role in ("=", "in") and slot.column]
        fix = remedy(looped[0].statement, fingerprint, keys, chains)
        findings.append(Finding("n+1", len(looped), file, line, fingerprint, fix, elapsed))
    return tuple(findings)


def _varying(calls: list[_Call]) -> tuple[Slot, ...]:
    """The slots whose values change from call to call; empty if that is no N+1."""
    columns = list(zip(*(call.single for call in calls), strict=False))
    varying = [i for i, values in enumerate(columns) if len(set(values)) > 1]
    if varying:
        return () if _paging(calls, varying) else tuple(calls[0].slots[i] for i in varying)
    lists = [call.listed for call in calls]
    if len(set(lists)) < 2 or _pieces(lists):
        return ()
    return tuple(slot for slot in shape(calls[0].statement.sql).slots if slot.role == "in")[:1]


def _pieces(lists: list[tuple[Any, ...]]) -> bool:
    """Whether the IN lists are one long list cut into pieces of the same length, the last one shorter."""
    sizes = sorted((len(one) for one in lists), reverse=True)
    disjoint = len({value for one in lists for value in one}) == sum(sizes)
    return sizes[0] > 1 and set(sizes[:-1]) == {sizes[0]} and sizes[-1] <= sizes[0] and (disjoint or sizes[0] >= 10)


def _paging(calls: list[_Call], varying: list[int]) -> bool:
    """Whether the calls fetch a long result page by page: by OFFSET, or going on after the last key seen."""
    roles = [slot.role for slot in calls[0].slots]
    limits = [value for role, value in zip(roles, calls[0].single, strict=False) if role == "limit"]
    keys = [i for i in varying if roles[i] == "<"]
    moving = keys + [i for i in varying if roles[i] == "offset"]
    if not limits or not moving:
        return False
    for call in calls:  # "a > x OR (a = x AND b > y)": an equality may repeat a key
        known = {call.single[i] for i in keys}
        if any(roles[i] not in ("<", "offset", "limit") and call.single[i] not in known for i in varying):
            return False
    try:
        column = [value for call in calls if (value := call.single[moving[0]]) is not None]
        if column not in (sorted(column), sorted(column, reverse=True)) or not limits[0] > 1:
            return False
    except TypeError:
        return False
    return all(call.statement.rows is None or call.statement.rows >= limits[0] for call in calls[:-2])
