"""Standard ``logging`` for the parts of a service, with the id of the request in every line.

The components are the loggers ``labkit.http``, ``labkit.sql``, ``labkit.cache``, ``labkit.health`` and
``labkit.alerts``. ``configure`` writes them, and the loggers of your own, to a stream; a ``Journal`` keeps them in
memory as a table. Passwords inside of addresses are masked in both.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TextIO

from labkit import settings
from labkit._text import say
from labkit.errors import MonitoringError
from labkit.monitoring._entry import OURS, Entry, RequestId, entry, mask
from labkit.monitoring.journal import Journal

__all__ = ["COMPONENTS", "Entry", "Journal", "RequestId", "cache_observer", "configure", "mask"]

COMPONENTS = ("http", "sql", "cache", "health", "alerts")

Form = Literal["human", "json"]
Levels = Mapping[str, str | int]

_FORMS = ("human", "json")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


class _Console(logging.Handler):
    """Writes records to a stream, by default to what ``sys.stderr`` is at that moment."""

    def __init__(self, form: Form, stream: TextIO | None) -> None:
        super().__init__()
        self.set_name(OURS)
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
    for name, chosen in {**{f"{OURS}.{name}": every for name in COMPONENTS}, **single}.items():
        logging.getLogger(name).setLevel(chosen)
    root = logging.getLogger()
    for old in [each for each in root.handlers if each.get_name() == OURS]:
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
        return f"{OURS}.{name}"
    if name == "root" or name in logging.root.manager.loggerDict:
        return str(name)
    raise MonitoringError(say("logs.component", name=source, value=repr(name), known=", ".join(COMPONENTS)))


def _form(name: str, value: Any) -> Form:
    if value not in _FORMS:
        raise MonitoringError(say("logs.form", name=name, value=repr(value)))
    return value  # type: ignore[no-any-return]


class CacheEvent(Protocol):
    """What the cache tells its observer."""

    kind: str
    function: str
    key: str
    seconds: float
    detail: str


_cache = logging.getLogger(f"{OURS}.cache")


def cache_observer(event: CacheEvent) -> None:
    """Log what a cache does: changes of its breaker as WARNING, everything else as DEBUG.

    For the breaker ``CacheClient(url, observer=cache_observer)``, for the rest
    ``@cached(..., observer=cache_observer)``.
    """
    level = logging.WARNING if event.kind == "breaker" else logging.DEBUG
    if _cache.isEnabledFor(level):
        text = " ".join(filter(None, (event.kind, event.function, event.detail)))
        extra = {"kind": event.kind, "function": event.function, "key": event.key, "seconds": event.seconds}
        _cache.log(level, "%s", text, extra=extra)
