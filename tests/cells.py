"""Run code as a notebook does: in ``__main__``, each cell a file that ``inspect`` and tracebacks can read."""

from __future__ import annotations

import itertools
import linecache
from pathlib import Path
from typing import Any

from labkit.course.markers import Role
from labkit.course.sources import read_source

_number = itertools.count(1)


def run(source: str, namespace: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run one cell in a namespace (a new one by default) and return it."""
    namespace = {} if namespace is None else namespace
    namespace["__name__"] = "__main__"
    filename = f"<cell {next(_number)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec"), namespace)
    return namespace


def text(lesson: Path, cell: str, role: Role = "starter") -> str:
    """The text of a cell in the learner's edition or, with ``role="solution"``, in the solutions edition."""
    found = next(c for c in read_source(lesson).cells if c.name == cell or c.exercise == cell)
    return found.edition(role) or ""
