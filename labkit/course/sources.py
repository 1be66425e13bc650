"""Read a lesson's source (jupytext percent) and its English text into cells.

A cell header names the cell and says what it is for::

    # %% name="profiler" tags=["exercise"] exercise="1.1" file="profiling/profiler.py" minutes=6

and the file's header promises the time::

    # ---
    # jupyter:
    #   lesson:
    #     minutes: 45
    #     running: 2
    # ---

or that it is a gallery (``gallery: true``), which is leafed through and promises none. There a cell with the tag
``trap`` holds a trap and its cure between the markers of an exercise.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jupytext

from labkit.course.markers import Role, has_markers, pick
from labkit.errors import CourseError

TAGS = frozenset(["setup", "predict", "measure", "exercise", "check", "reflect", "solution", "instructor", "trap"])
ONLY_SOLUTIONS = frozenset({"solution", "instructor"})

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ENTRY = re.compile(r"^<!-- cell: (?P<name>[a-zA-Z0-9_-]+) hash: (?P<hash>[0-9a-f]{8}) -->$", re.MULTILINE)
_FRONT = re.compile(r"\A---\n(?P<front>.*?)^---\n", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """One cell of a source; ``exercise`` and ``file`` are empty where there is none."""

    name: str
    kind: Literal["code", "markdown", "raw"]
    text: str
    tags: tuple[str, ...] = ()
    exercise: str = ""
    file: str = ""
    minutes: float = 0.0

    @property
    def hash(self) -> str:
        """What a translation of this cell is tied to."""
        return hashlib.sha256(self.text.strip().encode()).hexdigest()[:8]

    def edition(self, role: Role) -> str | None:
        """Its text in the learner's or the solutions edition; None if it is not in there."""
        if role == "starter" and ONLY_SOLUTIONS & set(self.tags):
            return None
        return pick(self.text, role) if has_markers(self.text) else self.text


@dataclass(frozen=True)
class Source:
    """A lesson: its name (``01_profiling``), the minutes promised and those it runs, its cells.

    A gallery promises no minutes: it is not taken from top to bottom.
    """

    name: str
    minutes: float
    running: float
    cells: tuple[Cell, ...]
    gallery: bool = False


@dataclass(frozen=True)
class Translation:
    """English text of a lesson: cell name to (hash of the Spanish cell, text)."""

    finished: bool = False
    texts: dict[str, tuple[str, str]] = field(default_factory=dict)


def read_source(path: Path) -> Source:
    """Read one source.

    Raises:
        CourseError: naming file and cell, if a header is unusable.
    """
    notebook = jupytext.read(path)
    header: dict[str, Any] = notebook.metadata.get("lesson", {})
    gallery = header.get("gallery") is True
    if not gallery and not isinstance(header.get("minutes"), int | float):
        raise CourseError(f"{path.name}: the header needs 'jupyter: lesson: minutes:', the time promised")
    cells: list[Cell] = []
    for index, raw in enumerate(notebook.cells, 1):
        meta = raw.metadata
        name = meta.get("name", "")
        where = f"{path.name}, cell {name or index}"
        if not _NAME.fullmatch(name):
            raise CourseError(f'{where}: give it a header name="...": ASCII letters, digits, - and _, at most 64')
        if name in {cell.name for cell in cells}:
            raise CourseError(f"{where}: another cell has that name; names must be unique")
        if unknown := set(meta.get("tags", [])) - TAGS:
            raise CourseError(f"{where}: unknown tags {sorted(unknown)}; use {', '.join(sorted(TAGS))}")
        given = {key: meta[key] for key in ("exercise", "file", "minutes") if key in meta}
        cell = Cell(name, raw.cell_type, raw.source, tuple(meta.get("tags", [])), **given)
        _exercise_is_complete(cell, where)
        cells.append(cell)
    return Source(path.stem, header.get("minutes", 0), header.get("running", 0), tuple(cells), gallery)


def _exercise_is_complete(cell: Cell, where: str) -> None:
    if has_markers(cell.text):
        try:
            starter, solution = pick(cell.text, "starter"), pick(cell.text, "solution")
        except CourseError as error:
            raise CourseError(f"{where}: {error}") from error
        if starter == solution:
            raise CourseError(f"{where}: starter and solution are the same")
    if "exercise" in cell.tags and not (cell.exercise and cell.minutes and has_markers(cell.text)):
        raise CourseError(f'{where}: an exercise needs exercise="1.1", minutes=5 and paired markers')
    if "trap" in cell.tags and not has_markers(cell.text):
        raise CourseError(f"{where}: a trap needs its cure, in paired markers")
    if cell.exercise and "exercise" not in cell.tags:
        raise CourseError(f'{where}: it has exercise="{cell.exercise}" without tags=["exercise"]')


def read_translation(path: Path) -> Translation | None:
    """Read ``NN_name.en.md``; None if the lesson is not translated.

    Raises:
        CourseError: if there is text before the first entry, or a cell twice.
    """
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    front = _FRONT.match(text)
    body = text[front.end() :] if front else text
    before, *pieces = _ENTRY.split(body)
    if before.strip():
        raise CourseError(f"{path.name}: text before the first '<!-- cell: NAME hash: 12345678 -->'")
    texts: dict[str, tuple[str, str]] = {}
    for name, hash_, english in zip(pieces[::3], pieces[1::3], pieces[2::3], strict=True):
        if name in texts:
            raise CourseError(f"{path.name}, cell {name}: it is there twice")
        texts[name] = (hash_, english.strip())
    return Translation(bool(front and re.search(r"^translated:\s*true\s*$", front["front"], re.MULTILINE)), texts)


def accept_translation(path: Path, source: Source) -> None:
    """Write the present hash of each Spanish cell into the English file: its text has been looked over."""
    hashes = {cell.name: cell.hash for cell in source.cells}
    text = path.read_text(encoding="utf-8")
    path.write_text(
        _ENTRY.sub(lambda m: f"<!-- cell: {m['name']} hash: {hashes.get(m['name'], m['hash'])} -->", text),
        encoding="utf-8",
    )
