"""Starter and solution of an exercise in one cell, and the fingerprint that tells an untouched starter.

In the source of a lesson an exercise cell holds both, live, between paired markers::

    # starter
    def total(items):
        return 0
    # solution
    def total(items):
        return sum(items)
    # end

Lines outside the markers belong to both editions; a cell may hold several pairs.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from typing import Literal

from labkit.errors import CourseError

Role = Literal["starter", "solution"]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

MARKERS = ("# starter", "# solution", "# end")


def has_markers(source: str) -> bool:
    """Whether any line of a cell is a marker."""
    return any(line.strip() in MARKERS for line in source.splitlines())


def pick(source: str, role: Role) -> str:
    """The text of a cell for one edition.

    Raises:
        CourseError: if the markers do not come as starter, solution, end.
    """
    kept: list[str] = []
    expected, inside = 0, ""
    for number, line in enumerate(source.splitlines(), 1):
        mark = line.strip()
        if mark not in MARKERS:
            if inside in ("", role):
                kept.append(line)
            continue
        if MARKERS.index(mark) != expected:
            raise CourseError(f"line {number}: found {mark!r} where {MARKERS[expected]!r} was due: pair the markers")
        inside = "" if mark == "# end" else mark[2:]
        expected = (expected + 1) % 3
    if expected:
        raise CourseError(f"the cell ends where {MARKERS[expected]!r} was due: pair the markers")
    return "\n".join(kept).strip("\n")


def definitions(source: str) -> dict[str, Definition]:
    """The functions and classes a cell defines at its top level, by name (the last one wins)."""
    body = ast.parse(source).body
    return {node.name: node for node in body if isinstance(node, Definition)}


def fingerprint(node: ast.AST) -> str:
    """A short hash of code that layout, comments and docstrings do not change.

    The tree is written out here, because ``ast.dump`` differs between Python versions.
    """
    return hashlib.sha256(_canonical(node).encode()).hexdigest()[:16]


def fingerprints(source: str) -> dict[str, str]:
    """The fingerprint of every function and class of a cell."""
    return {name: fingerprint(node) for name, node in definitions(source).items()}


def _canonical(value: object) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_canonical, value))}]"
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = {name: getattr(value, name, None) for name in value._fields}
    if isinstance(value, Definition):
        fields["body"] = _without_docstring(value.body)
    if isinstance(value, ast.JoinedStr):  # Python 3.12 puts an empty text into some f-strings
        fields["values"] = [v for v in value.values if not (isinstance(v, ast.Constant) and v.value == "")]
    told = [
        f"{name}={_canonical(item)}"
        for name, item in fields.items()
        if name not in ("ctx", "kind", "type_comment") and item is not None and item != []
    ]
    return f"{type(value).__name__}({','.join(told)})"


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
    return body


def words(texts: Iterable[str]) -> int:
    """How many words a reader reads (marks and bullets are none)."""
    return sum(any(c.isalnum() for c in word) for text in texts for word in text.split())
