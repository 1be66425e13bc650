"""One call of a cached function: running it, and reading its answer out of what was stored."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from starlette.exceptions import HTTPException

from labkit.cache.codec import Codec, Corrupt
from labkit.cache.entry import Entry
from labkit.cache.locks import Lock

Headers = list[tuple[bytes, bytes]]
Fill = Callable[[Lock, "Call"], Awaitable[Any]]
RAISED = "raised"  # in place of a route: the entry holds an HTTPException
GONE = frozenset({404, 410})


@dataclass(slots=True)
class Raised:
    """In the place of a result: what was raised."""

    error: Exception


@dataclass(slots=True)
class Made:
    """What a run of the function gave.

    Attributes:
        result: for the caller who ran it.
        payload: to be stored; None if it must not be.
        status, media: as in ``Entry``.
        tags: of the value.
        ttl: seconds, where it is not the function's usual one.
        failed: whether an older value would do better.
    """

    result: Any
    payload: bytes | None = None
    status: int = 0
    media: str = ""
    tags: Sequence[str] = ()
    ttl: float | None = None
    failed: bool = False


def write_media(route: str, own: bool, headers: Headers) -> str:
    """What ``Entry.media`` says: the route, whether a request's own headers belong to the answer, and its headers."""
    return json.dumps((route, own, [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]))


@lru_cache(maxsize=256)
def read_media(media: str) -> tuple[str, bool, Headers]:
    """The same, read. Raises ``Corrupt``."""
    try:
        route, own, pairs = json.loads(media)
        return str(route), bool(own), [(name.encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    except (ValueError, TypeError, AttributeError):
        raise Corrupt("media") from None


@dataclass(slots=True)
class Call:
    """One call, by arguments.

    Attributes:
        run: runs the function.
        tags: gives the tags of a result.
        codec: for the values.
        negative: seconds to keep that there is no such thing.
        repeatable: whether the function can be run again without its caller.
    """

    run: Callable[[], Awaitable[Any]]
    tags: Callable[[Any], Sequence[str]]
    codec: Codec
    negative: float | None
    repeatable: bool

    async def make(self) -> Made:
        """Run the function."""
        result = await self.run()
        return Made(result, self.codec.dumps(result), tags=self.tags(result))

    def use(self, entry: Entry) -> Any:
        """The answer that ``entry`` holds. ``Corrupt`` if it holds none for this call."""
        if not entry.rendered:
            return self.codec.loads(entry.payload)
        route, _, headers = read_media(entry.media)
        if route != RAISED:
            raise Corrupt("route")
        names = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
        return Raised(HTTPException(entry.status, self.codec.loads(entry.payload), names or None))

    def rescue(self, error: Exception) -> Made:
        """What to store of an exception that says that there is no such thing; any other is raised."""
        if self.negative is None or not isinstance(error, HTTPException) or error.status_code not in GONE:
            raise error
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (error.headers or {}).items()]
        media = write_media(RAISED, False, headers)
        return Made(Raised(error), self.codec.dumps(error.detail), error.status_code, media, ttl=self.negative)

    def dress(self, result: Any, label: str, age: float) -> Any:
        """The answer, saying where it is from and how many seconds old it is."""
        return result

    def behind(self, fill: Fill) -> Callable[[Lock], Awaitable[Any]] | None:
        """What computes the value without this caller; None if nothing can."""
        return (lambda lock: fill(lock, self)) if self.repeatable else None
