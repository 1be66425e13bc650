"""The folders in which servers keep their data and sockets."""

from __future__ import annotations

import tempfile
from pathlib import Path

from labkit._text import say
from labkit.errors import ServiceError


def temporary() -> Path:
    """A new folder that only we may enter, its path short: a unix socket's has room for 103 characters."""
    try:
        return Path(tempfile.mkdtemp(prefix="lk-", dir="/tmp"))
    except OSError:  # no /tmp, or not for us
        return Path(tempfile.mkdtemp(prefix="lk-"))


def make(folder: Path | str) -> Path:
    """The absolute path of ``folder``, which is created if need be.

    Raises:
        ServiceError: if it cannot be created.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServiceError(say("services.folder", folder=folder, error=error.strerror)) from None
    return folder.resolve()
