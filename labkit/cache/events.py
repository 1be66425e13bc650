"""What the cache tells whoever was handed to it as observer: one frozen record for each thing that happened."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

Kind = Literal["hit", "miss", "stale", "error", "bypass", "breaker"]


@dataclass(frozen=True, slots=True)
class Event:
    """One call of a cached function, or one change of the breaker.

    Attributes:
        kind: ``hit``, ``miss``, ``stale`` (an old value was served), ``bypass`` (Redis was not used), ``error``
            (the function raised, or what lay in Redis was unusable) or ``breaker`` (it changed its state).
        function: readable name of the function; empty for ``breaker``.
        key: the key in Redis, as far as it is known.
        seconds: what the caller waited.
        detail: the reason, for a machine: the breaker's new state and why.
    """

    kind: Kind
    function: str
    key: str
    seconds: float
    detail: str = ""


Observer = Callable[[Event], None]


def tell(observer: Observer | None, event: Event) -> None:
    """Hand the event over. An observer that raises never breaks a request.

    Events of the breaker come from whichever thread noticed: an observer must not mind.
    """
    if observer is not None:
        with suppress(Exception):
            observer(event)
