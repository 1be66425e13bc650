"""The learner's copies of the notebooks: made on the first start, never overwritten once edited.

``work/<language>/`` holds the copies and ``work/.notebooks.json`` remembers what each was when it was copied.
That tells a copy the learner changed, which stays, from one that may follow a new edition.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from labkit import settings
from labkit._text import Catalogue
from labkit.errors import CourseError, WorkFolderError

say = Catalogue("labkit.course")
MANIFEST = ".notebooks.json"


@dataclass(frozen=True)
class Sync:
    """What ``sync`` did, as names of lessons: copied, brought up to date, kept since edited."""

    folder: Path
    copied: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The same in sentences, one for each thing the learner should know; none if nothing happened."""
        lines = []
        if self.copied:
            lines.append(say("workspace.copied", folder=self.folder, names=", ".join(self.copied)))
        if self.updated:
            lines.append(say("workspace.updated", names=", ".join(self.updated)))
        return lines + [say("workspace.kept", name=name) for name in self.kept]


def root() -> Path:
    """The project's root: above the current folder or, failing that, around this package (editable install).

    Raises:
        CourseError: if there are no notebooks in either.
    """
    found = settings.project_root() or settings.project_root(Path(__file__).parent)
    if found is None:
        raise CourseError(say("workspace.no_root", folder=Path.cwd() / "notebooks"))
    return found


def lessons(language: str, project: Path | None = None) -> dict[str, Path]:
    """The shipped learner's edition of each lesson in a language, by name and in order.

    Raises:
        CourseError: if there are none.
    """
    folder = (project or root()) / "notebooks" / language
    found = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    if not found:
        raise CourseError(say("workspace.no_root", folder=folder))
    return found


def sync(language: str, *, project: Path | None = None) -> Sync:
    """Bring ``work/<language>/`` to the shipped notebooks without touching any that the learner edited.

    Raises:
        CourseError: if there are no notebooks in that language.
        WorkFolderError: if the work folder cannot be written.
    """
    shipped = lessons(language, project)
    folder = settings.work_folder() / language
    copied, updated, kept = [], [], []
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        known = _read_manifest()
        for name, source in shipped.items():
            target, key, new = folder / source.name, f"{language}/{source.name}", fingerprint(source)
            if not target.exists():
                _write(target, source.read_bytes())
                copied.append(name)
            elif (mine := fingerprint(target)) != new:
                if mine is None or mine != known.get(key):
                    if known.get(key) != new:
                        kept.append(name)
                    continue
                _write(target, source.read_bytes())
                updated.append(name)
            known[key] = new
        _write(_manifest_path(), json.dumps(known, indent=1, sort_keys=True).encode())
    return Sync(folder, tuple(copied), tuple(updated), tuple(kept))


def reset(name: str, language: str, *, project: Path | None = None, now: datetime | None = None) -> Path | None:
    """Bring one lesson back to the shipped edition; the learner's version moves to ``work/backup/``.

    Args:
        name: the lesson, as ``"01_profiling"``, ``"01"`` or the file's name.
        language: whose edition.
        project: the project's root (default: found).
        now: the time that the backup's name tells (default: the clock's).

    Returns:
        Where the learner's version is now; None if there was none or it was as shipped.

    Raises:
        CourseError: if there is no such lesson.
        WorkFolderError: if the work folder cannot be written.
    """
    shipped = lessons(language, project)
    wanted = Path(name).name.removesuffix(".ipynb")
    match = [lesson for lesson in shipped if lesson == wanted or lesson.split("_")[0] == wanted]
    if len(match) != 1:
        raise CourseError(say("workspace.no_lesson", name=name, known=", ".join(shipped)))
    source = shipped[match[0]]
    folder = settings.work_folder()
    target, backup = folder / language / source.name, None
    with _writing(folder):
        if target.exists() and fingerprint(target) != fingerprint(source):
            stamp = (now or datetime.now()).strftime("%Y%m%d-%H%M%S-%f")
            backup = folder / "backup" / language / f"{match[0]}-{stamp}.ipynb"
            _write(backup, target.read_bytes())
        _write(target, source.read_bytes())
        known = _read_manifest()
        known[f"{language}/{source.name}"] = fingerprint(source)
        _write(_manifest_path(), json.dumps(known, indent=1, sort_keys=True).encode())
    return backup


def fingerprint(notebook: Path) -> str | None:
    """A hash of what is in a notebook: cells, their order and outputs; None if it cannot be read.

    Opening a notebook makes JupyterLab rewrite metadata, a run leaves counts: neither is an edit.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        parts = [
            (
                cell["cell_type"],
                "".join(cell["source"]),
                cell.get("attachments") or {},
                cell.get("outputs") or [],
            )
            for cell in cells
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = say("workspace.cannot_write", folder=folder, error=error.strerror or error)
        raise WorkFolderError(message) from error


def _manifest_path() -> Path:
    return settings.work_folder() / MANIFEST


def _read_manifest() -> dict[str, str | None]:
    try:
        known = json.loads(_manifest_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # lost or damaged: then every copy counts as edited, which loses nothing
    return known if isinstance(known, dict) else {}


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, so that a full disk cannot leave half a notebook."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
