"""Build every edition of the lessons from their one source, byte for byte the same each time.

``notebooks/source/NN_name.py`` becomes ``notebooks/es/NN_name.ipynb`` for learners and
``notebooks/es/solutions/NN_name.ipynb``; with ``NN_name.en.md`` beside it, also the pair under
``notebooks/en/``. ``labkit/course/starters.json`` keeps what a check must know of the starters.

    python -m labkit notebooks                          write them
    python -m labkit notebooks --check                  fail if a committed one is stale
    python -m labkit notebooks --accept-translation 00_start
    python -m labkit notebooks --measure                run the learner's editions and note how long they take
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

import labkit
from labkit.course import budget
from labkit.course.deliverables import bound_names
from labkit.course.markers import Role, fingerprints
from labkit.course.sources import Cell, Source, Translation, accept_translation, read_source, read_translation
from labkit.errors import CourseError
from labkit.settings import project_root

STARTERS = Path("labkit") / "course" / "starters.json"
RUNNING = Path("notebooks") / "source" / "running.json"


@dataclass
class Build:
    """What the sources give: contents by path relative to the root, problems that stop it, warnings."""

    files: dict[Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def build(root: Path, *, measuring: bool = False) -> Build:
    """Make every edition in memory; ``measuring`` forgives that a lesson's running time is not known yet."""
    result = Build()
    starters: dict[str, Any] = {}
    running = json.loads(path.read_text()) if (path := root / RUNNING).exists() else {}
    for file in sorted((root / "notebooks" / "source").glob("*.py")):
        try:
            source, english = read_source(file), read_translation(file.with_suffix(".en.md"))
        except CourseError as error:
            result.problems.append(str(error))
            continue
        starters[source.name] = _outline(source)
        measured = running.get(source.name, 0.0 if measuring else None)
        result.problems += budget.problems(source, running=None if measured is None else measured / 60)
        _add(result, source, "es", {})
        if english is not None:
            texts = _current(source, english, result)
            result.problems += [f"en: {problem}" for problem in budget.problems(source, texts)]
            _add(result, source, "en", texts)
    result.files[STARTERS] = json.dumps(starters, indent=1, sort_keys=True) + "\n"
    return result


def _add(result: Build, source: Source, language: str, texts: dict[str, str]) -> None:
    folder = Path("notebooks") / language
    result.files[folder / f"{source.name}.ipynb"] = render(source, language, "starter", texts)
    result.files[folder / "solutions" / f"{source.name}.ipynb"] = render(source, language, "solution", texts)


def _outline(source: Source) -> dict[str, Any]:
    return {
        "minutes": source.minutes,
        "exercises": {
            cell.exercise: {
                "cell": cell.name,
                "minutes": cell.minutes,
                "functions": fingerprints(cell.edition("starter") or ""),
            }
            for cell in source.cells
            if cell.exercise
        },
        "parts": [
            {
                "cell": cell.name,
                "file": cell.file,
                "names": sorted(bound_names(cell.edition("starter") or "")),
                "exercise": cell.exercise,
            }
            for cell in source.cells
            if cell.file
        ],
        **({"cures": _cures(source)} if source.gallery else {}),
    }


def _cures(source: Source) -> dict[str, str]:
    """The cell of each trap as the solutions edition has it."""
    return {cell.name: cell.edition("solution") or "" for cell in source.cells if "trap" in cell.tags}


def _current(source: Source, english: Translation, result: Build) -> dict[str, str]:
    """The English texts by cell; a stale or missing one warns, or fails once the lesson is translated."""
    texts = {name: text for name, (_, text) in english.texts.items()}
    cells = {cell.name: cell for cell in source.cells if cell.kind == "markdown"}
    found = [f"{source.name}.en.md: no cell {name!r} in the source" for name in texts.keys() - cells.keys()]
    found += [f"{source.name}.en.md: cell {name} is missing" for name in cells.keys() - texts.keys()]
    found += [
        f"{source.name}.en.md: cell {name} is stale: the Spanish hash is {cells[name].hash}"
        for name, (hash_, _) in english.texts.items()
        if name in cells and cells[name].hash != hash_
    ]
    (result.problems if english.finished else result.warnings).extend(sorted(found))
    return texts


def render(source: Source, language: str, role: Role, texts: dict[str, str]) -> str:
    """One notebook as JSON text, without outputs.

    Args:
        source: the lesson.
        language: ``es`` or ``en``.
        role: ``starter`` for learners, ``solution`` for the solutions edition.
        texts: text of the markdown cells by name, where it differs from the source's.
    """
    cells = [
        _cell(cell, _text(cell, text, language, texts))
        for cell in source.cells
        if (text := cell.edition(role)) is not None
    ]
    notebook = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language": language,
            "edition": "learner" if role == "starter" else "solutions",
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    nbformat.validate(notebook)
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _text(cell: Cell, text: str, language: str, texts: dict[str, str]) -> str:
    if cell.kind == "markdown":
        return texts.get(cell.name, text)
    return text.replace('language="es"', f'language="{language}"') if "setup" in cell.tags else text


def _cell(cell: Cell, text: str) -> dict[str, Any]:
    made: dict[str, Any] = {"cell_type": cell.kind, "id": cell.name, "source": text.splitlines(keepends=True)}
    made["metadata"] = {"tags": list(cell.tags)} if cell.tags else {}
    return made | ({"outputs": [], "execution_count": None} if cell.kind == "code" else {})


def stale(root: Path, made: Build) -> list[str]:
    """The files under ``root`` that differ from what the sources give, and notebooks without a source."""
    differ = {str(p) for p, text in made.files.items() if not _same(root / p, text)}
    folders = [root / "notebooks" / language for language in ("es", "en")]
    found = {path.relative_to(root) for folder in folders for path in folder.rglob("*.ipynb")}
    orphans = {str(p) for p in found - made.files.keys() if ".ipynb_checkpoints" not in p.parts}
    return sorted(differ | orphans)


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_bytes() == text.encode()


def measure(root: Path, names: Sequence[str]) -> dict[str, float]:
    """Seconds that each learner's edition takes from top to bottom (needs nbclient, from the dev extra)."""
    from nbclient import NotebookClient

    seconds: dict[str, float] = {}
    for name in names:
        text = (root / "notebooks" / "es" / f"{name}.ipynb").read_text(encoding="utf-8")
        notebook = nbformat.reads(text, as_version=4)  # type: ignore[no-untyped-call]
        with tempfile.TemporaryDirectory() as work:  # not the learner's own
            begin = time.perf_counter()
            client = NotebookClient(notebook, timeout=600, kernel_name="python3")
            client.execute(env=os.environ | {"LABKIT_WORK": work})
            seconds[name] = round(time.perf_counter() - begin, 1)
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``python -m labkit notebooks``; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m labkit notebooks", description="Build the lessons' editions.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is stale")
    parser.add_argument("--measure", action="store_true", help="run the learner's editions and note their time")
    parser.add_argument("--accept-translation", metavar="NAME", help="the English text of this lesson is up to date")
    parser.add_argument("--root", type=Path, help="the project's folder")
    options = parser.parse_args(argv)
    root: Path = options.root or project_root() or Path(labkit.__file__).parents[1]
    sources = root / "notebooks" / "source"
    if name := options.accept_translation:
        try:
            accept_translation(sources / f"{name}.en.md", read_source(sources / f"{name}.py"))
        except (CourseError, OSError) as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
    made = build(root, measuring=options.measure)
    for line in made.warnings:
        sys.stderr.write(f"warning: {line}\n")
    for line in made.problems:
        sys.stderr.write(f"error: {line}\n")
    if options.check:
        differ = stale(root, made)
        for line in differ:
            sys.stderr.write(f"stale: {line}: run 'make notebooks' (or delete it, if it has no source)\n")
        return 1 if made.problems or differ else 0
    if made.problems:
        return 1
    for relative, text in made.files.items():
        if not _same(root / relative, text):
            (root / relative).parent.mkdir(parents=True, exist_ok=True)
            (root / relative).write_bytes(text.encode())
            sys.stdout.write(f"wrote {relative}\n")
    if options.measure:
        times = measure(root, [file.stem for file in sorted(sources.glob("*.py"))])
        (root / RUNNING).write_text(json.dumps(times, indent=1, sort_keys=True) + "\n")
    return 0
