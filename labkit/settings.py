"""What the environment and the learner may set, read in one place.

=====================  ==========================================================================
``LABKIT_LANG``        language of figures, cards and errors: ``es`` (default) or ``en``
``LABKIT_WORK``        the learner's folder; default: ``work/`` in the project's root
``DATABASE_URL``       SQLAlchemy URL of a database of your own instead of the SQLite file
``REDIS_URL``          URL of a Redis of your own instead of the one labkit starts
``LABKIT_FAKE_REDIS``  ``1``: use fakeredis even where the real server is available
``LABKIT_LOG``         levels of the logs: ``warning``, or by component ``warning,sql=debug``; default: ``info``
``LABKIT_LOG_FORM``    ``human`` (default) or ``json``
=====================  ==========================================================================
"""

from __future__ import annotations

import os
from pathlib import Path

from labkit.errors import LabkitError, WorkFolderError

LANGUAGES = ("es", "en")
_chosen: str | None = None


def language() -> str:
    """The language of everything a person reads: what ``set_language`` said, else ``LABKIT_LANG``, else ``"es"``."""
    return _chosen or (lang if (lang := os.environ.get("LABKIT_LANG", "es")) in LANGUAGES else "es")


def set_language(lang: str) -> None:
    """Choose the language for this process.

    Raises:
        LabkitError: if ``lang`` is not one of ``LANGUAGES``.
    """
    global _chosen
    if lang not in LANGUAGES:
        raise LabkitError(f"unknown language {lang!r}: choose one of {', '.join(LANGUAGES)}")
    _chosen = lang


def project_root(start: Path | None = None) -> Path | None:
    """The folder above ``start`` (default: the current one) that holds the workbook, or None outside of it."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "notebooks" / "source").is_dir() and (folder / "labkit").is_dir():
            return folder
    return None


def work_folder() -> Path:
    """The learner's folder, created if need be: ``LABKIT_WORK``, else ``work/`` in the project's root or here.

    Raises:
        WorkFolderError: if it cannot be created.
    """
    if custom := os.environ.get("LABKIT_WORK"):
        folder = Path(custom).expanduser().resolve()
    else:
        folder = (project_root() or Path.cwd()) / "work"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        from labkit._text import say  # late: _text reads the language from here

        raise WorkFolderError(say("core.work_folder", folder=folder, error=error.strerror)) from error
    return folder


def database_url() -> str | None:
    """``DATABASE_URL``, or None when the SQLite file is to be used."""
    return os.environ.get("DATABASE_URL") or None


def redis_url() -> str | None:
    """``REDIS_URL``, or None when labkit is to start a server."""
    return os.environ.get("REDIS_URL") or None


def fake_redis() -> bool:
    """Whether ``LABKIT_FAKE_REDIS`` forces fakeredis."""
    return os.environ.get("LABKIT_FAKE_REDIS", "") not in ("", "0")


def log() -> str:
    """``LABKIT_LOG``: a level, and levels of single components, separated by commas; empty if not set."""
    return os.environ.get("LABKIT_LOG", "")


def log_form() -> str:
    """``LABKIT_LOG_FORM``, or ``"human"``."""
    return os.environ.get("LABKIT_LOG_FORM") or "human"
