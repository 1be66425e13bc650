"""A statement without its values: what two statements that differ only in these have in common."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

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
                bare = text.lstrip("?$:%(").removesuffix("s").removesuffix(")") if text[0] == "%" else text[1:]
                key = int(bare) - 1 if bare.isdigit() else bare or position
                position += 1
            slots.append(Slot(role, column, text if kind == "literal" else None, key))
    plain = " ".join(_TOKEN.sub(_blank, sql).split())
    if _ROWS.search(plain):  # many rows in one INSERT are no repetition, whatever they hold
        return Shape(_ROWS.sub("VALUES (…)", plain), ())
    return Shape(_LISTS.sub(r"\1 (…)", plain), tuple(slots))


def _blank(match: re.Match[str]) -> str:
    kind = match.lastgroup
    return match.group() if kind in ("name", "op") else " " if kind == "comment" else "?"
