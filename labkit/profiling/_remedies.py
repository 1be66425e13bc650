"""The query or the option that replaces a repeated statement, in the words of the user's own models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import Select, Table
from sqlalchemy.sql import visitors

from labkit._text import say

if TYPE_CHECKING:
    from labkit.profiling._capture import Statement

_AGGREGATE = re.compile(r"\b(count|sum|avg|min|max)\((.*?)\)", re.IGNORECASE)


def relation(statement: Statement) -> Any:
    """The relationship that a statement loads, lazily or eagerly; None if it loads none."""
    options = getattr(getattr(statement.origin[0], "statement", None), "_compile_options", None)
    return getattr(getattr(options, "_current_path", None), "prop", None)


def remedy(statement: Statement, fingerprint: str, keys: list[str], chains: dict[Any, str]) -> str:
    """What to write instead.

    Args:
        statement: one of the repeated ones.
        fingerprint: its text without values.
        keys: the columns that are compared with another value each time.
        chains: options advised so far, by the class that they load: a load on a deeper level is joined to
            that of its parent. Added to.
    """
    if (link := relation(statement)) is not None:
        own = f"selectinload({link.parent.class_.__name__}.{link.key})"
        if link.parent in chains and link.parent is not link.mapper:
            own = f"{chains[link.parent]}.{own}"
        chains.setdefault(link.mapper, own)
        return own
    clause = getattr(statement.origin[0], "statement", None)
    verb = fingerprint.split()[0].upper()
    if clause is None or clause.__visit_name__ == "textclause":
        return _raw(fingerprint, verb, keys)
    names = _Names(fingerprint, clause)
    if deferred := names.deferred(getattr(clause, "_compile_options", None)):
        return ", ".join(f"undefer({name})" for name in deferred)
    return _expression(clause, statement.sql, verb, keys, names)


def _general(keys: list[str]) -> str:
    columns = keys[0] if len(keys) == 1 else f"({', '.join(keys)})"
    return say("profiling.fix_in_general" if keys else "profiling.fix_without_key", columns=columns)


def _raw(fingerprint: str, verb: str, keys: list[str]) -> str:
    """The replacing query of a statement written as text."""
    if verb in ("INSERT", "UPDATE", "REPLACE"):
        return f'execute(text("{fingerprint}"), rows)'
    found = re.fullmatch(r"SELECT (.*?) FROM (.*?)( LIMIT \?.*)?", fingerprint, re.IGNORECASE)
    if found is None or len(keys) != 1:
        return _general(keys)
    (head, rest, _), key = found.groups(), re.escape(keys[0])
    equal = rf"\? *=+ *{key}\b|(?<![\w.]){key} *(?:=+ *\?|IN \(…\))"
    rest = re.sub(equal, f"{keys[0]} IN (…)", rest, flags=re.IGNORECASE)
    if not re.search(rf"(^|, ?)(\w+\.)?(\*|{key.split('.')[-1]})(,|$)", head):
        head = f"{keys[0]}, {head}"
    if _AGGREGATE.search(head) and not re.search(r" (GROUP|ORDER) BY ", rest, re.IGNORECASE):
        rest += f" GROUP BY {keys[0]}"
    return f"SELECT {head} FROM {rest}"


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

    def deferred(self, options: Any) -> list[str]:
        """The deferred columns that a statement loads, if it loads nothing else."""
        wanted = getattr(options, "_only_load_props", None) or ()
        mappers = [m for m in self._mappers.values() if all(name in m.column_attrs for name in wanted)]
        if len(mappers) != 1 or not all(mappers[0].column_attrs[name].deferred for name in wanted):
            return []
        return [f"{mappers[0].class_.__name__}.{name}" for name in sorted(wanted)]


def _expression(clause: Any, sql: str, verb: str, keys: list[str], names: _Names) -> str:
    """The replacing query of a statement written with SQLAlchemy's functions."""
    columns = list(dict.fromkeys(names.column(key) for key in keys))
    where = f"{columns[0]}.in_(ids)" if len(columns) == 1 else f"tuple_({', '.join(columns)}).in_(keys)"
    if verb in ("INSERT", "UPDATE"):
        return f"execute({verb.lower()}({names.table(clause.table.name)}), rows)"
    if not all("." in column for column in columns) or not columns:  # text inside a query of SQLAlchemy's
        return _general(keys)
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
