"""The same cache for plain functions: connections that wait by blocking, for any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import closing
from typing import Any, Protocol

from redis import BlockingConnectionPool, Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.exceptions import DataError, ResponseError
from redis.retry import Retry

from labkit.cache._commands import AWAY, LATE, Commands, Unavailable, Word, finished, why


class Owner(Protocol):
    """The client, and what it decides for both faces."""

    timeout: float
    slots: bool

    def address(self) -> str: ...
    def use(self) -> None: ...
    def trip(self, reason: str) -> None: ...
    def owe(self, keys: Iterable[str], tags: Iterable[str], reason: str) -> None: ...


class Blocking(Commands):
    """Commands whose coroutines never suspend (see ``finished``).

    Args:
        owner: asked whether Redis may be used, and told when it does not answer.
        size: connections at most; who comes when all are taken waits.
        patience: seconds that an answer may take; None for the owner's.
        probe: do not ask.
    """

    def __init__(self, owner: Owner, size: int, patience: float | None = None, probe: bool = False) -> None:
        self._owner, self._size, self._patience, self._probe = owner, size, patience, probe
        self._redis: Redis | RedisCluster | None = None
        self._lock = threading.Lock()

    async def call(self, *words: Word) -> Any:
        if not self._probe:
            self._owner.use()
        try:
            return self.redis().execute_command(*words)  # type: ignore[no-untyped-call]
        except ResponseError as refused:
            raise Unavailable(why(refused)) from None
        except DataError:  # nothing that can be sent: Redis is well
            raise
        except AWAY as error:
            self._owner.trip(why(error))
            raise Unavailable(why(error)) from None

    async def block(self, seconds: float, *words: Word) -> Any:
        with closing(Blocking(self._owner, 1, seconds + LATE)) as aside:
            return await aside.call(*words)

    def owe(self, keys: Iterable[str], tags: Iterable[str], reason: str) -> None:
        self._owner.owe(keys, tags, reason)

    def redis(self) -> Redis | RedisCluster:
        """redis-py's client, without its retries."""
        with self._lock:
            if self._redis is None:
                url, timeout = self._owner.address(), self._owner.timeout
                self.slots = self._owner.slots
                options: dict[str, Any] = {
                    "protocol": 2,
                    "socket_timeout": self._patience or timeout,
                    "socket_connect_timeout": timeout,
                    "retry": Retry(NoBackoff(), 0),
                }
                if self.slots:
                    self._redis = RedisCluster.from_url(url.replace("+cluster", ""), **options)
                else:
                    options |= {"max_connections": self._size, "timeout": timeout, "driver_info": None}
                    self._redis = Redis(connection_pool=BlockingConnectionPool.from_url(url, **options))
            return self._redis

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        with self._lock:
            redis, self._redis = self._redis, None
        if redis is not None:
            redis.close()


class SyncClient:
    """``client.sync``: set, get, delete and exists for plain functions. See ``CacheClient``.

    Attributes:
        commands: everything else, for the cache's own parts.
    """

    def __init__(self, commands: Blocking) -> None:
        self.commands = commands

    def get(self, key: str) -> Any:
        """The value under ``key``; None if there is none, it is unusable or Redis is away."""
        return finished(self.commands.get(key))

    def set(self, key: str, value: Any, ttl: float = 300) -> bool:
        """Keep a value for ``ttl`` seconds; whether Redis confirmed it. Raises ``CacheError`` as the other face."""
        return finished(self.commands.set(key, value, ttl))

    def delete(self, *keys: str) -> bool:
        """Delete; whether there was something to delete."""
        return finished(self.commands.delete(*keys))

    def exists(self, key: str) -> bool:
        """Whether there is a value under ``key``; False if Redis is away."""
        return finished(self.commands.exists(key))
