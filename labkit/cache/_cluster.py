"""A Redis Cluster behind the face of a ``Link``: redis-py finds the nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from labkit.cache._commands import AWAY, Unavailable, why


class ClusterLink:
    """As `labkit.cache._link.Link`, for ``redis+cluster://`` and ``rediss+cluster://`` addresses.

    It opens with the first question. To be closed before its loop ends.
    """

    def __init__(self, url: str, timeout: float, lost: Callable[[str], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = self.loop.create_future()
        self.opened.set_result(None)
        self.task: asyncio.Task[None] | None = None
        self._timeout, self._lost = timeout, lost
        options: dict[str, Any] = {"protocol": 2, "socket_timeout": None, "socket_connect_timeout": None}
        retry = Retry(NoBackoff(), 0)
        self._cluster = RedisCluster.from_url(url.replace("+cluster", ""), retry=retry, **options)

    @property
    def closed(self) -> bool:
        return self.task is not None

    @property
    def usable(self) -> bool:
        return self.task is None

    async def ask(self, words: tuple[Any, ...], seconds: float | None = None) -> Any:
        """The answer to a command, a ``hiredis.ReplyError`` if it was refused; raises ``Unavailable``."""
        try:
            async with asyncio.timeout(self._timeout if seconds is None else seconds):
                return await self._cluster.execute_command(*words)
        except ResponseError as refused:
            return hiredis.ReplyError(why(refused))
        except AWAY as error:
            if not self.closed:
                self.close()
                self._lost(why(error))
            raise Unavailable(why(error)) from None

    def close(self) -> None:
        """Close the connections, in a task of its own. Only within the loop; twice is fine."""
        if self.task is None:
            self.task = self.loop.create_task(self._cluster.aclose())

    def leave(self) -> None:
        """Close, from whichever thread and whether the loop still runs or not."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.close)
