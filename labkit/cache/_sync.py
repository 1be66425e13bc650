"""The same cache for plain functions: connections that wait by blocking, for any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from redis import BlockingConnectionPool, Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from labkit.cache._commands import LATE, Commands, Unavailable, Word, finished


class Blocking(Commands):
    """Commands whose coroutines never suspend (see ``finished``).

    Args:
        url: gives the address, at the first use.
        timeout: seconds that a call may take.
        size: connections at most; who comes when all are taken waits.
        use: raises ``Unavailable`` while Redis may not be used.
        lost: told why Redis did not answer.
        owe: told of an invalidation that was not confirmed.
    """

    def __init__(
        self,
        url: Callable[[], str],
        timeout: float,
        size: int,
        use: Callable[[], None],
        lost: Callable[[str], None],
        owe: Callable[[Iterable[str], Iterable[str], str], None],
    ) -> None:
        self._url, self._timeout, self._size = url, timeout, size
        self._use, self._lost, self._owe = use, lost, owe
        self._lock = threading.Lock()
        self._redis: Redis | RedisCluster | None = None

    @property
    def redis(self) -> Redis | RedisCluster:
        """redis-py's client, without retries."""
        with self._lock:
            if self._redis is None:
                self._redis = self._opened(self._timeout)
            return self._redis

    async def call(self, *words: Word) -> Any:
        self._use()
        return self._asked(self.redis, words)

    async def block(self, seconds: float, *words: Word) -> Any:
        self._use()
        redis = self._opened(seconds + LATE)
        try:
            return self._asked(redis, words)
        finally:
            redis.close()

    def owe(self, keys: Iterable[str], tags: Iterable[str], reason: str) -> None:
        self._owe(keys, tags, reason)

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        with self._lock:
            redis, self._redis = self._redis, None
        if redis is not None:
            redis.close()

    def _asked(self, redis: Redis | RedisCluster, words: tuple[Word, ...]) -> Any:
        try:
            if isinstance(redis, RedisCluster):
                return redis.execute_command(*words)
            connection = redis.connection_pool.get_connection()
            try:
                connection.send_command(*words)
                return connection.read_response()
            except ResponseError:
                raise
            except BaseException:  # half done: its answer would be the next caller's
                connection.disconnect()
                raise
            finally:
                redis.connection_pool.release(connection)
        except ResponseError as refused:
            raise Unavailable(str(refused)) from None
        except (OSError, RedisError) as error:
            self._lost(f"{type(error).__name__}: {error}")
            raise Unavailable(str(error)) from None

    def _opened(self, timeout: float) -> Redis | RedisCluster:
        url = self._url()
        options: dict[str, Any] = {
            "protocol": 2,
            "driver_info": None,
            "socket_timeout": timeout,
            "socket_connect_timeout": self._timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        try:
            if self.slots:
                return RedisCluster.from_url(url.replace("+cluster", ""), cluster_error_retry_attempts=0, **options)
        except (OSError, RedisError) as error:
            self._lost(f"{type(error).__name__}: {error}")
            raise Unavailable(str(error)) from None
        pool = BlockingConnectionPool.from_url(url, max_connections=self._size, timeout=self._timeout, **options)
        return Redis(connection_pool=pool)


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
