"""The limits of a lesson, so that it stays readable and keeps its promise of time.

At most 40 cells, 15 lines a code cell (an exercise cell 30), 80 words a text cell, 1,200 words a lesson, and
reading + writing + running within the minutes promised. Code cells carry no prose, because they are the same
in every language.

A gallery is leafed through: any number of cells, but 60 words a text cell, and it runs in 60 s from top to bottom.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

from labkit.course.markers import Role, words
from labkit.course.sources import Source

CELLS, CODE_LINES, EXERCISE_LINES, CELL_WORDS, LESSON_WORDS = 40, 15, 30, 80, 1200
GALLERY_WORDS, GALLERY_MINUTES = 60, 1.0
WORDS_A_MINUTE = 180

_SPANISH = re.compile(r"[áéíóúñ¿¡]", re.IGNORECASE)
_COMMON = frozenset(
    re.findall(r"\w+", "el la los las un una de del que por con para se tu es en y como este hay si más")
)


def minutes(source: Source, running: float | None = None) -> float:
    """Reading, writing and running time of the learner's edition.

    Args:
        source: the lesson.
        running: measured minutes; default: the bound stated in its header.
    """
    read = words(cell.text for cell in source.cells if cell.kind == "markdown" and cell.edition("starter"))
    writing = sum(cell.minutes for cell in source.cells)
    return read / WORDS_A_MINUTE + writing + (source.running if running is None else running)


def problems(source: Source, texts: dict[str, str] | None = None, running: float | None = None) -> Iterator[str]:
    """What breaks the limits, each with file and cell.

    Args:
        source: the lesson.
        texts: the text cells of another language by name; default: the source's own.
        running: measured minutes of a run.
    """
    texts = texts or {}
    shown = {cell.name: texts.get(cell.name, cell.text) for cell in source.cells if cell.kind == "markdown"}
    most = GALLERY_WORDS if source.gallery else CELL_WORDS
    for name, text in shown.items():
        if (count := words([text])) > most:
            yield f"{source.name}, cell {name}: {count} words, at most {most}"
    if not source.gallery:
        yield from _whole(source, shown)
    if not texts:
        yield from _code(source)
        yield from _time(source, running)


def _whole(source: Source, shown: dict[str, str]) -> Iterator[str]:
    for role in ("starter", "solution"):
        count = sum(cell.edition(role) is not None for cell in source.cells)
        if count > CELLS:
            yield f"{source.name}: {count} cells in the {role} edition, at most {CELLS}"
    if (count := words(shown.values())) > LESSON_WORDS:
        yield f"{source.name}: {count} words, at most {LESSON_WORDS}"


def _time(source: Source, running: float | None) -> Iterator[str]:
    if running is None and not source.running:
        yield f"{source.name}: no running time: run 'notebooks --measure' or put a bound 'running:' into its header"
    if not source.gallery and (total := minutes(source, running)) > source.minutes:
        yield f"{source.name}: takes {total:.1f} minutes and promises {source.minutes:g}"
    runs = source.running if running is None else running
    if source.gallery and runs > GALLERY_MINUTES:
        yield f"{source.name}: runs {60 * runs:.0f} s, at most {60 * GALLERY_MINUTES:.0f}"


def _code(source: Source) -> Iterator[str]:
    roles: tuple[Role, ...] = ("starter", "solution")
    for cell in source.cells:
        if cell.kind != "code":
            continue
        most = EXERCISE_LINES if cell.exercise else CODE_LINES
        for text in {cell.edition(role) or "" for role in roles}:
            if (count := len(text.splitlines())) > most:
                yield f"{source.name}, cell {cell.name}: {count} lines, at most {most}"
        for prose in spanish(cell.text):
            yield f"{source.name}, cell {cell.name}: prose in a code cell, move it to a catalogue: {prose!r}"


def spanish(code: str) -> list[str]:
    """String literals and comments of a code cell that read like Spanish sentences."""
    code = "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in code.splitlines())
    nodes = ast.walk(ast.parse(code))
    literals = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return [text for text in literals + comments if _reads_spanish(text)]


def _reads_spanish(text: str) -> bool:
    found = re.findall(r"\w+", text.lower())
    return len(found) >= 3 and (bool(_SPANISH.search(text)) or sum(word in _COMMON for word in found) >= 2)
