"""What a learner did, kept as a list of events: one JSON file a lesson, merged and never overwritten.

Every check, hint, prediction and reflection is one event with an id of its own. A save reads the file, unites
its events with those in memory and replaces it at once, so that two kernels on one lesson lose nothing. Where
the folder cannot be written (read-only, full disk), the events stay in memory, ``problem`` says so in a
sentence, and the next save writes them all.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from labkit.course.cards import words
from labkit.errors import LabkitError

Event = dict[str, Any]
VERSION = 1
# What an event of each kind must hold; the kinds of a later version pass.
HOLDS = {
    "check": ("exercise", "verdict", "message", "source", "needs"),
    "hint": ("exercise", "rung"),
    "predict": ("question", "values"),
    "actual": ("question", "values"),
    "reflect": ("question", "text"),
    "keep": ("name", "values", "rows", "findings", "picture", "alt"),
    "part": ("cell", "source", "needs"),
    "report": ("files",),
}
ROWS = 12  # of a kept table


class Evidence:
    """The events of one lesson.

    Args:
        path: the JSON file; its folder is made when something is first written.
        clock: seconds since the epoch.

    Attributes:
        problem: a sentence if the last write went wrong, else empty.
        notice: a sentence if something was found amiss before, else empty.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self.problem = self.notice = ""
        self._clock = clock
        self._events: dict[str, Event] = {}
        self._pictures: dict[str, bytes] = {}  # those not yet on the disk
        self._merge_file()

    def __iter__(self) -> Iterator[Event]:
        """The events, oldest first."""
        return iter(sorted(self._events.values(), key=lambda event: (event["at"], event["id"])))

    def of(self, kind: str, **values: Any) -> list[Event]:
        """The events of one kind that have these values, oldest first."""
        return [e for e in self if e["kind"] == kind and all(e.get(n) == v for n, v in values.items())]

    def add(self, kind: str, **values: Any) -> Event:
        """Record an event and save; never raises for want of a disk."""
        # Later than the last one even within a tick, or after the clock was set back: the order tells what counts.
        at = max([self._clock(), *(event["at"] + 1e-6 for event in list(self)[-1:])])
        event: Event = {"id": uuid.uuid4().hex, "at": round(at, 6), "kind": kind, **values}
        event = json.loads(json.dumps(event, default=str, skipkeys=True))
        self._events[event["id"]] = event
        self.save()
        return event

    def keep(self, name: str, result: Any) -> None:
        """Record a measurement under a name: its numbers, table, findings and picture, for report and rubric.

        Args:
            name: ``comparison``; a later result of that name takes its place.
            result: a dataclass; ``plot()``, ``df`` and ``findings`` are taken where it has them.
        """
        names = [field.name for field in fields(result)] if is_dataclass(result) else []
        names += [n for n, item in vars(type(result)).items() if isinstance(item, property) and n[0] != "_"]
        values = {n: value for n in names if _is_plain(value := _read(result, n))}
        table = _read(result, "df")
        rows = table.head(ROWS).to_dict("records") if isinstance(table, pd.DataFrame) else []
        findings = [_finding(item) for item in _read(result, "findings") or ()]
        picture, alt = "", ""
        if callable(plot := _read(result, "plot")):
            figure = plot()
            picture, alt = f"{self.path.stem}-{name}.png", str(getattr(figure, "alt", ""))
            self._pictures[picture] = figure.png()
        self.add("keep", name=name, values=values, rows=rows, findings=findings, picture=picture, alt=alt)

    def kept(self) -> dict[str, Event]:
        """The last result kept under each name."""
        return {event["name"]: event for event in self.of("keep")}

    def picture(self, name: str) -> bytes:
        """The PNG of a kept result; empty if there is none any more."""
        with contextlib.suppress(OSError):
            return self._pictures.get(name) or (self.path.parent / name).read_bytes()
        return b""

    def save(self) -> bool:
        """Write what is in memory, united with what is in the file; tells whether it worked."""
        self.problem = ""
        if not self._merge_file():
            return False  # what cannot be read must not be replaced
        text = json.dumps({"version": VERSION, "events": list(self)}, ensure_ascii=False, indent=1)
        try:
            write_atomically(self.path, text.encode("utf-8", "backslashreplace"))  # half a surrogate pair
            for name in list(self._pictures):
                write_atomically(self.path.parent / name, self._pictures[name])
                del self._pictures[name]
        except OSError as error:
            reason = error.strerror or str(error)
            self.problem = words("course.not_saved", path=self.path, reason=reason)
            return False
        return True

    def reset(self) -> Path | None:
        """Begin anew; the old file is kept beside as a backup, whose path is returned."""
        self._events.clear()
        self._pictures.clear()
        return self._set_aside("reset") if self.path.exists() else None

    def _merge_file(self) -> bool:
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            events = {event["id"]: event for event in data["events"] if _is_whole(event)}
        except FileNotFoundError:
            return True
        except OSError as error:
            self.problem = words("course.not_read", path=self.path, reason=error.strerror or str(error))
            return False
        except (ValueError, TypeError, KeyError, AttributeError):
            if (backup := self._set_aside("corrupt")) is None:
                self.problem = words("course.corrupt_stays", path=self.path)
                return False
            self.notice = words("course.corrupt", path=self.path, backup=backup.name)
        else:
            self._events = events | self._events
        return True

    def _set_aside(self, why: str) -> Path | None:
        backup = self.path.with_name(f"{self.path.stem}.{why}-{int(self._clock() * 1000)}.json")
        with contextlib.suppress(OSError):
            return self.path.replace(backup)
        return None


def _is_whole(event: Event) -> bool:
    """True; raises KeyError or TypeError for an event that the rest of the course could not read."""
    return all(event[name] is not None for name in HOLDS.get(event["kind"], ())) and event["at"] + 0.0 >= 0


def _read(result: Any, name: str) -> Any:
    """An attribute of a result; None if it has none or cannot tell."""
    with contextlib.suppress(LabkitError):
        return getattr(result, name, None)
    return None


def _is_plain(value: Any) -> bool:
    """Whether JSON holds a value as it is."""
    return isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def plain(value: Any) -> Any:
    """A value as JSON may hold it: itself, else its text, shortened (an object may refuse even that)."""
    if _is_plain(value):
        return value
    try:
        return str(value)[:200]
    except Exception:
        return type(value).__name__


def _finding(item: Any) -> dict[str, Any]:
    """What a report says of a finding: how often, where, and what to do."""
    return {name: _read(item, name) for name in ("count", "place", "fix")}


def write_atomically(path: Path, data: bytes) -> None:
    """Put a whole file in place at once: readers see the old one or the new one.

    Raises:
        OSError: if it cannot be written; the old file is then untouched and no remnant is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
