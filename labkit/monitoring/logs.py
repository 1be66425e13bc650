"""Standard ``logging`` for the parts of a service, with the id of the request in every line.

The components are the loggers ``labkit.http``, ``labkit.sql``, ``labkit.cache``, ``labkit.health`` and
``labkit.alerts``. ``configure`` writes them, and the loggers of your own, to a stream; a ``Journal`` keeps them in
memory as a table. Passwords inside of addresses are masked in both.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, Self, TextIO

import pandas as pd

from labkit import settings
from labkit._text import say
from labkit.errors import MonitoringError
from labkit.monitoring.ids import request_id

COMPONENTS = ("http", "sql", "cache", "health", "alerts")
LONGEST = 10_000  # characters of a text that are kept

Form = Literal["human", "json"]
Levels = Mapping[str, str | int]

_FORMS = ("human", "json")
_OURS = "labkit"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "request_id"}
_BASE = ("time", "level", "component", "request_id", "message", "error")
# Up to the last @ before a slash; or, unless it is a port, a password with slashes in it. Bounded, or a long line of
# nothing but colons would take minutes.
_SECRETS = re.compile(r"(://[^\s:/?#@]{0,128}:)(?:[^\s/?#]{0,256}|(?!\d{1,5}[/?#])[^\s@]{0,256})@")
_WORDS = re.compile(r"(?i)\b(password|passwd|pwd)(\s?[=:]\s?)('[^']{0,256}'|[^\s&;,'\")}]{1,256})")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def mask(text: str) -> str:
    """The text with ``***`` in place of the password of every address, and of ``password=...``."""
    if "://" in text:
        text = _SECRETS.sub(r"\1***@", text)
    return _WORDS.sub(r"\1\2***", text)


@dataclass(frozen=True, slots=True)
class Entry:
    """One record as it was when it was logged: plain text and numbers, nothing that lives on or changes.

    Attributes:
        time: seconds since 1970.
        level: of logging, 10 to 50.
        component: ``http``, ``sql``, ...; of any other logger its name.
        request_id: of the request it was logged in; empty outside of one.
        message: with its arguments filled in.
        error: the traceback, if there is one.
        fields: what ``extra=`` gave.
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
    error = "\n".join(filter(None, (error, record.stack_info)))
    fields = {name: _plain(value) for name, value in vars(record).items() if name not in _STANDARD}
    return Entry(
        record.created,
        record.levelno,
        record.name.removeprefix(f"{_OURS}."),
        _text(getattr(record, "request_id", None) or request_id.get()),
        _text(message),
        _text(error),
        {f"{name}_" if name in _BASE else name: value for name, value in fields.items()},
    )


def _plain(value: Any) -> Any:
    """What JSON can hold: a value that is a plain number stays one, everything else becomes text."""
    if value is None or isinstance(value, bool):
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


class _Console(logging.Handler):
    """Writes records to a stream, by default to what ``sys.stderr`` is at that moment."""

    def __init__(self, form: Form, stream: TextIO | None) -> None:
        super().__init__()
        self.set_name(_OURS)
        self._form = _json if form == "json" else _human
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        try:
            stream = self._stream or sys.stderr
            encoding = getattr(stream, "encoding", None) or "utf-8"
            line = f"{self._form(entry(record))}\n"
            stream.write(line.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
        except Exception:
            self.handleError(record)


def _json(one: Entry) -> str:
    base = {
        "time": datetime.fromtimestamp(one.time, UTC).isoformat(timespec="milliseconds"),
        "level": logging.getLevelName(one.level),
        "component": one.component,
        "request_id": one.request_id,
        "message": one.message,
    }
    return json.dumps({**base, **one.fields, **({"error": one.error} if one.error else {})})


def _human(one: Entry) -> str:
    time = datetime.fromtimestamp(one.time).strftime("%H:%M:%S.%f")[:-3]
    level, request = logging.getLevelName(one.level), one.request_id[:8] or "-"
    text = "\n".join(filter(None, (one.message, one.error)))
    # A message cannot pretend to be a line of its own, nor move the cursor of a terminal.
    text = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text).replace("\n", "\n    ")
    return f"{time} {level:<8} {one.component:<7} {request:<8} {text}"


def configure(
    *,
    level: str | int | None = None,
    levels: Levels | None = None,
    form: Form | None = None,
    stream: TextIO | None = None,
) -> None:
    """Write the components, and whatever loggers of your own let through, to a stream. Twice is as good as once.

    Other handlers are left alone. What is not given comes from the environment: ``LABKIT_LOG="warning,sql=debug"``
    and ``LABKIT_LOG_FORM=json``.

    Args:
        level: of every component; ``"INFO"`` if nothing else is said.
        levels: of single components, and of loggers of your own that exist already.
        form: ``"human"``, short and aligned, or ``"json"``, one object a line.
        stream: default: ``sys.stderr``.

    Raises:
        MonitoringError: if there is no such level, component, logger or form.
    """
    every, single = _from_environment()
    every = every if level is None else _level("level", level)
    single |= {_logger("levels", name): _level(f"levels[{name!r}]", value) for name, value in (levels or {}).items()}
    form = form if form is not None else _form("LABKIT_LOG_FORM", settings.log_form())
    handler = _Console(_form("form", form), stream)
    for name, chosen in {**{f"{_OURS}.{name}": every for name in COMPONENTS}, **single}.items():
        logging.getLogger(name).setLevel(chosen)
    root = logging.getLogger()
    for old in [each for each in root.handlers if each.get_name() == _OURS]:
        root.removeHandler(old)
    root.addHandler(handler)


def _from_environment() -> tuple[int, dict[str, int]]:
    every, single = logging.INFO, {}
    for item in filter(None, (part.strip() for part in settings.log().split(","))):
        name, sign, value = (word.strip() for word in item.partition("="))
        if sign:
            single[_logger("LABKIT_LOG", name)] = _level(f"LABKIT_LOG: {name}", value)
        else:
            every = _level("LABKIT_LOG", name)
    return every, single


def _level(name: str, value: Any) -> int:
    known = logging.getLevelNamesMapping()
    if isinstance(value, str) and value.upper() in known:
        return known[value.upper()]
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise MonitoringError(say("logs.level", name=name, value=repr(value)))


def _logger(source: str, name: Any) -> str:
    if name in COMPONENTS:
        return f"{_OURS}.{name}"
    if name == "root" or name in logging.root.manager.loggerDict:
        return str(name)
    raise MonitoringError(say("logs.component", name=source, value=repr(name), known=", ".join(COMPONENTS)))


def _form(name: str, value: Any) -> Form:
    if value not in _FORMS:
        raise MonitoringError(say("logs.form", name=name, value=repr(value)))
    return value  # type: ignore[no-any-return]


class Journal(logging.Handler):
    """The last records in memory, as a table to filter.

    A context manager: inside, it hears every logger, and the components speak from INFO on unless ``configure``
    said otherwise. It takes nothing away: a warning that nobody else would have written still goes to stderr.

    Args:
        size: records that are kept; the oldest go first.

    Raises:
        MonitoringError: if ``size`` is not a whole number above 0.
    """

    def __init__(self, size: int = 10_000) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise MonitoringError(say("logs.size", value=repr(size)))
        super().__init__()
        self._entries: deque[Entry] = deque(maxlen=size)
        self._raised = False

    def emit(self, record: logging.LogRecord) -> None:
        self._entries.append(entry(record))
        if record.levelno >= logging.WARNING and logging.lastResort and self._alone(record.name):
            logging.lastResort.handle(record)

    def _alone(self, name: str) -> bool:
        """Whether without journals this record would have had no handler; of ours nobody expects it on stderr."""
        if name.partition(".")[0] == _OURS or next(_journals(), None) is not self:
            return False
        logger: logging.Logger | None = logging.getLogger(name)
        while logger is not None:
            if any(not isinstance(each, Journal) for each in logger.handlers):
                return False
            logger = logger.parent if logger.propagate else None
        return True

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The oldest first."""
        self.acquire()
        try:
            return tuple(self._entries)
        finally:
            self.release()

    @property
    def df(self) -> pd.DataFrame:
        """One row a record, the oldest first; levels can be compared: ``df[df.level >= "WARNING"]``.

        Columns: time (UTC), level, component, request_id, message, error (a traceback), and those of ``extra=``.
        """
        entries = self.entries
        rows = [
            {
                "time": pd.Timestamp(one.time, unit="s", tz="UTC"),
                "level": logging.getLevelName(one.level),
                "component": one.component,
                "request_id": one.request_id,
                "message": one.message,
                "error": one.error,
                **one.fields,
            }
            for one in entries
        ]
        df = pd.DataFrame(rows, columns=[*dict.fromkeys([*_BASE, *(name for one in entries for name in one.fields)])])
        ranks = {name: logging.getLevelNamesMapping()[name] for name in _LEVELS}
        ranks |= {logging.getLevelName(one.level): one.level for one in entries}
        df["level"] = pd.Categorical(df["level"], sorted(ranks, key=ranks.__getitem__), ordered=True)
        df["time"] = pd.to_datetime(df["time"], utc=True)
        return df

    def clear(self) -> None:
        """Forget everything so far."""
        self._entries.clear()

    def __enter__(self) -> Self:
        ours = logging.getLogger(_OURS)
        if ours.level == logging.NOTSET:
            ours.setLevel(logging.INFO)
            self._raised = True
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *raised: object) -> None:
        logging.getLogger().removeHandler(self)
        if self._raised:
            self._raised = False
            if (other := next(_journals(), None)) is not None:
                other._raised = True
            else:
                logging.getLogger(_OURS).setLevel(logging.NOTSET)

    def __repr__(self) -> str:
        return f"<Journal {len(self._entries)}>"


def _journals() -> Iterator[Any]:
    return (each for each in logging.getLogger().handlers if isinstance(each, Journal))


class CacheEvent(Protocol):
    """What the cache tells its observer."""

    kind: str
    function: str
    key: str
    seconds: float
    detail: str


_cache = logging.getLogger(f"{_OURS}.cache")


def cache_observer(event: CacheEvent) -> None:
    """Log what a cache does: changes of its breaker as WARNING, everything else as DEBUG.

    ``CacheClient(url, observer=cache_observer)`` and ``cached(..., observer=cache_observer)``.
    """
    level = logging.WARNING if event.kind == "breaker" else logging.DEBUG
    if _cache.isEnabledFor(level):
        text = " ".join(filter(None, (event.kind, event.function, event.detail)))
        extra = {"kind": event.kind, "function": event.function, "key": event.key, "seconds": event.seconds}
        _cache.log(level, "%s", text, extra=extra)
