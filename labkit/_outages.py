"""What can go wrong around a Lab: who wants it wrong at the moment, and how it is set right again.

A fault is a wish. Several may stand at once, from nested ``with`` blocks and from buttons, and end in any
order: each part (Redis, the database, the disk) is brought to what the wishes left ask for, and is well when
there are none.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import ClassVar, Self

from labkit._text import number, say
from labkit.errors import LabkitError, ServiceError

SLOW_MS = 20.0  # within the 50 ms that a cache should wait, and dearer than most answers without a cache

Line = tuple[str, str]  # a symbol (● well, ▲ slow, ✗ broken) and a sentence


class Part(ABC):
    """Something that a Lab runs on and can break."""

    names: ClassVar[tuple[str, ...]]
    """Its faults."""

    with_ms: ClassVar[str] = ""
    """The one of them that takes milliseconds."""

    @abstractmethod
    def check(self, name: str) -> None:
        """Raise a ServiceError with the remedy if this Lab has it not, or it is somebody else's."""

    @abstractmethod
    def simulated(self, name: str) -> bool:
        """Whether this fault is played, since there is no real server to break."""

    @abstractmethod
    def settle(self, wished: Mapping[str, float], closing: bool) -> None:
        """Bring it to what is wished: names of its faults, each with the most milliseconds that were asked for.

        Args:
            wished: see above; empty for none.
            closing: it is about to be stopped, and need not be started once more.
        """

    @abstractmethod
    def lines(self) -> list[Line]:
        """What is the matter with it, as it is and not as it was asked for."""


class Outages:
    """The faults of one Lab.

    Args:
        parts: what can be broken.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._wishes: list[Fault] = []
        self._closed = False
        self._lock, self._turn = threading.Lock(), threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    @property
    def known(self) -> list[str]:
        """The names of all faults."""
        return [name for part in self.parts for name in part.names]

    def problem(self, name: str) -> str:
        """Why a fault cannot be had from this Lab; empty if it can."""
        try:
            self.fault(name)
        except LabkitError as error:
            return str(error)
        return ""

    def fault(self, name: str, ms: float | None = None) -> Fault:
        """A fault that begins when it is entered.

        Args:
            name: one of ``known``.
            ms: milliseconds that ``redis_slow`` holds each command back.

        Raises:
            ServiceError: if there is no such fault, ``ms`` is unusable, what is to be broken is not the Lab's own, or
                the Lab is closed.
        """
        if self._closed:
            raise ServiceError(say("core.closed"))
        part = next((part for part in self.parts if name in part.names), None)
        if part is None:
            raise ServiceError(say("faults.unknown", name=repr(name), known=", ".join(self.known)))
        if ms is not None:
            usable = isinstance(ms, int | float) and not isinstance(ms, bool) and 0 < ms < float("inf")
            if name != part.with_ms or not usable:
                slow = ", ".join(part.with_ms for part in self.parts if part.with_ms)
                raise ServiceError(say("faults.bad_ms", ms=repr(ms), name=slow))
        part.check(name)
        return Fault(self, part, name, SLOW_MS if ms is None else float(ms))

    def begin(self, fault: Fault) -> None:
        """Add a wish and bring its part there; nothing of it stays if that fails or is interrupted."""
        with self._lock:
            if self._closed:
                raise ServiceError(say("core.closed"))
            self._wishes.append(fault)
        try:
            self._settle(fault.part)
        except BaseException:
            with suppress(LabkitError):
                self.end(fault)
            raise

    def end(self, fault: Fault) -> None:
        """Take a wish away, if it stands."""
        with self._lock:
            if fault in self._wishes:
                self._wishes.remove(fault)
        self._settle(fault.part)

    def close(self) -> None:
        """Undo everything for good: a server that is to be stopped need not be started once more."""
        with self._lock:
            self._closed = True
            self._wishes.clear()
        for part in self.parts:
            with suppress(LabkitError):
                self._settle(part)

    def _settle(self, part: Part) -> None:
        """Bring a part to what is wished, in a thread: an interrupt of the cell must not leave it half done."""
        done: SimpleQueue[BaseException | None] = SimpleQueue()

        def work() -> None:
            try:
                with self._turn:
                    part.settle(*self._wished(part))
            except BaseException as error:
                done.put(error)
            else:
                done.put(None)

        threading.Thread(target=work, name="labkit fault", daemon=True).start()
        if (failed := done.get()) is not None:
            raise failed

    def _wished(self, part: Part) -> tuple[dict[str, float], bool]:
        wished: dict[str, float] = {}
        with self._lock:
            for fault in self._wishes:
                if fault.part is part:
                    wished[fault.name] = max(fault.ms, wished.get(fault.name, 0.0))
            return wished, self._closed


class Fault:
    """Something that goes wrong for as long as a ``with`` block lasts. May be entered again, inside itself too."""

    def __init__(self, outages: Outages, part: Part, name: str, ms: float) -> None:
        self.part, self.name, self.ms = part, name, ms
        self._outages = outages
        self._depth = 0

    def __enter__(self) -> Self:
        self._depth += 1
        try:
            if self._depth == 1:
                self._outages.begin(self)
        except BaseException:
            self._depth -= 1
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._outages.end(self)

    @property
    def simulated(self) -> bool:
        """Whether it is played, since there is no real server to break."""
        return self.part.simulated(self.name)

    def __repr__(self) -> str:
        return f"{label(self.name, self.ms)}{say('faults.simulated') if self.simulated else ''}"


def label(name: str, ms: float = SLOW_MS) -> str:
    """What a fault is called on a button."""
    return say(f"faults.{name}", ms=number(ms, ",.3g"))
