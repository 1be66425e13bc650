"""One connection to Redis that all callers of one event loop share.

Redis answers in the order in which it was asked. So a caller need not own a connection: it appends its command,
and answers are dealt out first come, first served. A caller that is cancelled leaves its place in the queue
behind, and its answer is thrown away when it comes: no answer ever reaches somebody else. There is nothing to
wait for before a command, and a hundred concurrent ones cost a few reads of the socket.

redis-py opens the connection (address, TLS, password, database); its layers above that cost more than Redis.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

import hiredis
from redis.asyncio import ConnectionPool

from labkit.cache._commands import AWAY, Unavailable, why

_NOTHING = object()
_BYTE = 2e-8  # seconds more for each byte of a command: Redis copies it, and other answers wait behind it


class Link(asyncio.Protocol):
    """A connection, opened in the background as soon as it is made; for one event loop, the running one.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        timeout: seconds within which it must be open, and each command answered.
        lost: told why when it could not be opened, or broke with somebody waiting.

    Attributes:
        opened: done when it is open; raises ``Unavailable`` if that failed.
        usable: whether it is open now.
        closed: whether it cannot be used any more.
        task: ends when all is closed.
    """

    def __init__(self, url: str, timeout: float, lost: Callable[[str], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.usable = self.closed = False
        self.opened: asyncio.Future[None] = self.loop.create_future()
        self._over: asyncio.Future[None] = self.loop.create_future()
        self._timeout, self._lost = timeout, lost
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._timer: asyncio.TimerHandle | None = None
        self._under_way = 0, 0  # bytes to be sent, and of an answer that is not whole, at the last look
        self._transport: asyncio.Transport
        # An empty context: it belongs to no request. As a task it is also told when the loop ends.
        self.task = self.loop.create_task(self._live(url), context=Context())

    def ask(self, words: tuple[Any, ...], seconds: float | None = None) -> asyncio.Future[Any]:
        """Send a command; the future holds the answer (a ``hiredis.ReplyError`` if Redis refused).

        Args:
            words: the command and its arguments: bytes, text or numbers.
            seconds: its own time limit instead of ``timeout``.

        The future raises ``Unavailable`` if the connection breaks or is silent beyond the limit.
        """
        packed = hiredis.pack_command(words)  # what cannot be sent must not wait for an answer: it would get another's
        future: asyncio.Future[Any] = self.loop.create_future()
        due = self.loop.time() + (self._timeout if seconds is None else seconds) + len(packed) * _BYTE
        self._waiting.append((future, due))
        if self._timer is None:
            self._timer = self.loop.call_at(due, self._look, due)
        self._transport.write(packed)
        return future

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (answer := self._reader.gets()) is not _NOTHING:
                self._take(answer)
        except (hiredis.ProtocolError, IndexError) as error:  # not a Redis, or one that speaks out of turn
            self.close(f"protocol: {error}")

    def _take(self, answer: Any) -> None:
        future, _ = self._waiting.popleft()
        if not future.done():
            future.set_result(answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.close(f"lost: {error}" if error else "lost")

    def close(self, reason: str = "") -> None:
        """Break the connection off; whoever waits gets ``Unavailable``. Only within its loop; twice is fine."""
        if self.closed:
            return
        self.usable, self.closed = False, True
        failed = bool(self._waiting) or not self.opened.done()
        waiting = [future for future, _ in self._waiting if not future.done()]
        self._waiting.clear()
        for future in (*waiting, *([] if self.opened.done() else [self.opened])):
            future.set_exception(Unavailable(reason))
        self.opened.exception()  # perhaps nobody asks
        if not self._over.done():
            self._over.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if failed and reason:
            self._lost(reason)

    def leave(self) -> None:
        """Close, from whichever thread and whether the loop still runs or not."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.close)

    def _look(self, due: float) -> None:
        """One timer watches the oldest question: answers come in order."""
        self._timer = None
        if not self._waiting:
            return
        now, oldest = self.loop.time(), self._waiting[0][1]
        under_way = self._transport.get_write_buffer_size(), self._reader.has_data() * self._reader.len()
        if now < oldest:
            again = oldest
        elif now - due > self._timeout / 4:  # this very loop was blocked, not Redis: the answer may lie ready
            again = now + self._timeout / 2
        elif any(under_way) and under_way != self._under_way:  # something big, and it moves
            again = now + self._timeout
        else:
            self.close("timeout")
            return
        self._under_way = under_way
        self._timer = self.loop.call_at(again, self._look, again)

    async def _live(self, url: str) -> None:
        connection: Any = None
        try:
            # RESP2, no name, no probing: opening costs no command at all but for a password or a database.
            options: dict[str, Any] = {"protocol": 2, "driver_info": None}
            pool = ConnectionPool.from_url(url, socket_timeout=None, socket_connect_timeout=None, **options)
            connection = pool.connection_class(**pool.connection_kwargs)
            async with asyncio.timeout(self._timeout):
                await connection.connect()
            writer = connection._writer
            connection._reader = connection._writer = None  # from here on the stream is ours
            self._transport = writer.transport
            self._transport.set_protocol(self)
            try:
                if not self.closed:
                    self.usable = True
                    self.opened.set_result(None)
                await self._over
            finally:
                self._transport.abort()
        except AWAY as error:
            self.close(why(error))
        finally:
            self.close("ended")
            if connection is not None:
                await connection.disconnect(nowait=True)
