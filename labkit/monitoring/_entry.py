"""A log record as plain text and numbers, without the passwords that were in it."""

from __future__ import annotations

import logging
import math
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from labkit.monitoring.ids import request_id

OURS = "labkit"
BASE = ("time", "level", "component", "request_id", "message", "error")
LONGEST = 8_000  # characters of a text that are kept

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "request_id"}
# Up to the last @ before a slash; or, unless it is a port, a password with slashes in it. Bounded, or a long line of
# nothing but colons would take minutes.
_ADDRESS = re.compile(r"(://[^\s:/?#@]{0,128}:)(?:[^\s/?#]{0,256}|(?!\d{1,5}[/?#])[^\s@]{0,256})@")
_NAMED = re.compile(
    r"""(?i)(password|passwd|pwd)(["']?\s?[=:]\s?)('[^'\n]{0,256}'|"[^"\n]{0,256}"|[^\s&;,'")}\]]{1,256})"""
)


def mask(text: str) -> str:
    """The text with ``***`` in place of the password of every address, and of ``password=...``."""
    if "://" in text:
        text = _ADDRESS.sub(r"\1***@", text)
    lower = text.lower()  # most lines have neither, and a look is ten times as fast as the expression
    return _NAMED.sub(r"\1\2***", text) if "passw" in lower or "pwd" in lower else text


@dataclass(frozen=True, slots=True)
class Entry:
    """One record as it was when it was logged: nothing in it lives on or changes.

    Attributes:
        time: seconds since 1970.
        level: of logging, 10 to 50.
        component: ``http``, ``sql``, ...; of any other logger its name.
        request_id: of the request it was logged in; empty outside of one.
        message: with its arguments filled in.
        error: the traceback, if there is one.
        fields: what ``extra=`` gave; one that has the name of an attribute of these gets ``_`` behind it.
    """

    time: float
    level: int
    component: str
    request_id: str
    message: str
    error: str
    fields: Mapping[str, Any]


def entry(record: logging.LogRecord) -> Entry:
    """What there is to say of a record. Never raises, whatever was logged."""
    try:
        message = record.getMessage()
    except Exception:  # arguments that do not fit, or that cannot be shown
        message = f"{_text(record.msg)} {_text(record.args)}"
    error = record.exc_text or ""
    if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
        error = "".join(traceback.format_exception(*record.exc_info)).rstrip()
    own = {name: _plain(value) for name, value in vars(record).items() if name not in _STANDARD}
    return Entry(
        record.created,
        record.levelno,
        _text(record.name).removeprefix(f"{OURS}."),
        _text(getattr(record, "request_id", None) or request_id.get()),
        _text(message),
        _text("\n".join(map(_text, filter(None, (error, record.stack_info))))),
        {f"{name}_" if name in BASE else name: value for name, value in own.items()},
    )


def _plain(value: Any) -> Any:
    """What JSON can hold: a plain number stays one, everything else becomes text."""
    if value is None or type(value) is bool:
        return value
    if type(value) is int and abs(value) < 2**63:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    return _text(value)


def _text(value: Any) -> str:
    try:
        text = mask(str(value))
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


class RequestId(logging.Filter):
    """Gives every record a ``request_id``; for handlers of your own: ``handler.addFilter(RequestId())``."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id"):
            record.request_id = request_id.get()
        return True
