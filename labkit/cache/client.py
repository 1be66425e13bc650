"""The cache's connection to Redis: fast while Redis is well, and out of the way while it is not."""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

import hiredis
from redis.asyncio import ConnectionPool

from labkit._text import say
from labkit.cache._link import Link, Unavailable, Word
from labkit.cache.breaker import Breaker
from labkit.cache.events import Observer
from labkit.errors import CacheError

__all__ = ["CacheClient", "Unavailable", "token_of"]


def token_of(key: str) -> str:
    """The name under which the fill of ``key`` holds its lock. The braces keep both in one slot of a cluster."""
    return f"{{{key}}}:fill"


class CacheClient:
    """Values with a time to live in Redis. No call raises or waits long because Redis is away.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://`` address, or a function that gives it at the first use.
        timeout: seconds that a call may take, connecting included.
        observer: told what the breaker does.
        breaker: a breaker of your own.
    """

    def __init__(
        self,
        url: str | Callable[[], str] = "redis://127.0.0.1:6379/0",
        *,
        timeout: float = 0.05,
        observer: Observer | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self.timeout = timeout
        self.breaker = breaker or Breaker(observer=observer)
        self._url = url
        self._pool: ConnectionPool | None = None
        self._link: Link | None = None
        self._lock = threading.Lock()

    async def call(self, *words: Word) -> Any:
        """The answer to any command, as bytes.

        Raises:
            Unavailable: if Redis is away or refuses.
        """
        link = self._link
        if link is None or link.closed or link.loop is not asyncio.get_running_loop():
            link = await self._connected()
        answer = await link.ask(words)
        if isinstance(answer, hiredis.ReplyError):
            raise Unavailable(str(answer))
        return answer

    async def read(self, key: str) -> bytes | None:
        """The bytes under ``key``, or None. Raises ``Unavailable``."""
        return await self.call(b"GET", key)  # type: ignore[no-any-return]

    async def write(self, key: str, data: bytes, ttl: float) -> None:
        """Keep bytes for ``ttl`` seconds. Raises ``Unavailable``."""
        await self.call(b"SET", key, data, b"PX", max(1, round(ttl * 1000)))

    async def run(self, script: str, keys: Sequence[str] = (), args: Sequence[Word] = ()) -> Any:
        """Run a Lua script, sent once and then called by its digest. Raises ``Unavailable``."""
        rest = (len(keys), *keys, *args)
        try:
            return await self.call(b"EVALSHA", hashlib.sha1(script.encode()).hexdigest(), *rest)
        except Unavailable as refused:
            if not str(refused).startswith("NOSCRIPT"):
                raise
        return await self.call(b"EVAL", script, *rest)

    async def block(self, seconds: float, *words: Word) -> Any:
        """The answer to a blocking command (XREAD BLOCK), waited for up to ``seconds``, on a connection of its own.

        Raises:
            Unavailable: if Redis is away, refuses, or has not answered by then.
        """
        link = await self._connected(Link(self._connection(), self.timeout, self._trip))
        try:
            answer = await link.ask(words, seconds + self.timeout)
        finally:
            link.close()
        if isinstance(answer, hiredis.ReplyError):
            raise Unavailable(str(answer))
        return answer

    async def forget(self, keys: Sequence[str] = (), tags: Sequence[str] = ()) -> bool:
        """Delete the values under ``keys`` and the tokens of their fills; whether Redis confirmed it."""
        try:
            if keys:
                await self.call(b"UNLINK", *keys, *map(token_of, keys))
        except Unavailable:
            return False
        return True

    async def get(self, key: str) -> Any:
        """The value under ``key``; None if there is none, it is unusable or Redis is away."""
        from labkit.cache.codec import Codec, Corrupt

        try:
            data = await self.read(key)
            return None if data is None else Codec().loads(data)
        except (Unavailable, Corrupt):
            return None

    async def set(self, key: str, value: Any, ttl: float = 300) -> bool:
        """Keep a value for ``ttl`` seconds; whether Redis confirmed it.

        Raises:
            CacheError: if the value would not come back as it is, or ``ttl`` is no time.
        """
        from labkit.cache.codec import Codec

        data = Codec().dumps(value)
        try:
            await self.write(key, data, checked_ttl(ttl))
        except Unavailable:
            return False
        return True

    async def delete(self, *keys: str) -> bool:
        """Delete; whether there was something to delete."""
        try:
            return bool(keys) and await self.call(b"UNLINK", *keys) > 0
        except Unavailable:
            return False

    async def exists(self, key: str) -> bool:
        """Whether there is a value under ``key``; False if Redis is away."""
        try:
            return bool(await self.call(b"EXISTS", key))
        except Unavailable:
            return False

    async def close(self) -> None:
        """Close the connections. The next call opens them again; twice is fine."""
        link, self._link = self._link, None
        if link is not None:
            link.leave()
            await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    async def _connected(self, link: Link | None = None) -> Link:
        if not self.breaker.closed and not (self.breaker.due() and self.breaker.close()):
            raise Unavailable(self.breaker.state)
        if link is None:
            link = self._link
            if link is None or link.closed or link.loop is not asyncio.get_running_loop():
                if link is not None:
                    link.leave()
                link = self._link = Link(self._connection(), self.timeout, self._trip)
        await asyncio.shield(link.opened)
        return link

    def _connection(self) -> Any:
        if self._pool is None:
            url = self._url if isinstance(self._url, str) else self._url()
            # RESP2, no name: a connection costs no command at all unless there is a password or a database.
            self._pool = ConnectionPool.from_url(
                url, protocol=2, driver_info=None, socket_timeout=None, socket_connect_timeout=None
            )
        return self._pool.connection_class(**self._pool.connection_kwargs)

    def _trip(self, reason: str) -> None:
        self.breaker.trip(reason)


def checked_ttl(ttl: float) -> float:
    """Seconds to live, if it is a time that Redis can keep.

    Raises:
        CacheError: if it is not a number above 0.
    """
    number = isinstance(ttl, int | float) and not isinstance(ttl, bool)
    if not (number and 0 < ttl <= 3_000_000_000 and math.isfinite(ttl)):
        raise CacheError(say("cache.bad_ttl", ttl=repr(ttl)))
    return float(ttl)
