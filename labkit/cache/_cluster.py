"""A Redis Cluster behind the face of a ``Link``: redis-py finds the nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

import hiredis
from redis.asyncio import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from labkit.cache._commands import Unavailable


class ClusterLink:
    """As `labkit.cache._link.Link`, for ``redis+cluster://`` and ``rediss+cluster://`` addresses."""

    def __init__(self, url: str, timeout: float, lost: Callable[[str], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed = False
        self.opened: asyncio.Future[None] = self.loop.create_future()
        self._over = asyncio.Event()
        self._timeout, self._lost = timeout, lost
        self._cluster = RedisCluster.from_url(
            url.replace("+cluster", ""),
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
        )
        self.task = self.loop.create_task(self._live(), context=Context())

    async def ask(self, words: tuple[Any, ...], seconds: float | None = None) -> Any:
        """The answer to a command, a ``hiredis.ReplyError`` if it was refused; raises ``Unavailable``."""
        if self.closed:
            raise Unavailable("closed")
        try:
            async with asyncio.timeout(self._timeout if seconds is None else seconds):
                return await self._cluster.execute_command(*words)
        except ResponseError as refused:
            return hiredis.ReplyError(str(refused))
        except (OSError, RedisError) as error:
            self._fail(error)
            raise Unavailable(str(error)) from None

    def close(self, reason: str = "") -> None:
        self.closed = True
        self._over.set()

    def leave(self) -> None:
        """Close, from whichever thread and whether the loop still runs or not."""
        self.closed = True
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.close)

    def _fail(self, error: Exception) -> None:
        if not self.closed:
            self.close()
            self._lost("timeout" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}")

    async def _live(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._cluster.initialize()
            self.opened.set_result(None)
            await self._over.wait()
        except (OSError, RedisError) as error:
            self._fail(error)
        finally:
            self.close()
            if not self.opened.done():
                self.opened.set_exception(Unavailable("closed"))
                self.opened.exception()  # perhaps nobody asks
            await self._cluster.aclose()
