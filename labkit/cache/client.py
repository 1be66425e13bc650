"""The cache's connection to Redis: fast while Redis is well, and out of the way while it is not."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Self
from urllib.parse import urlsplit

import hiredis

from labkit._text import say
from labkit.cache._cluster import ClusterLink
from labkit.cache._commands import LATE, Commands, Unavailable, Word, checked_ttl, finished, grave_of, token_of
from labkit.cache._debts import Debts
from labkit.cache._link import Link
from labkit.cache._sync import Blocking, SyncClient
from labkit.cache.breaker import Breaker
from labkit.cache.events import Observer
from labkit.errors import CacheError

__all__ = ["CacheClient", "Unavailable", "checked_ttl", "finished", "grave_of", "token_of"]

_SCHEMES = ("redis://", "rediss://", "unix://", "redis+cluster://", "rediss+cluster://")


class CacheClient(Commands):
    """Values with a time to live in Redis. No call raises or waits long because Redis is away.

    The first call that gets no answer costs ``timeout`` and opens the breaker. From then on calls return at once
    (``get`` gives None, ``set`` and ``delete`` False), until a probe in the background has found Redis back and
    has done the invalidations that were missed. Probes start while there are calls.

    Args:
        url: ``redis://``, ``rediss://`` (TLS), ``unix://``, or for a cluster ``redis+cluster://`` or
            ``rediss+cluster://``; or a function that gives it whenever a connection is opened.
        timeout: seconds that a call may take, connecting included; with 20 ms more for each megabyte that is sent, and
            as long as an answer keeps coming in.
        max_connections: of the face for plain functions; who finds all taken waits. Coroutines share a single one.
        observer: told what the breaker does.
        breaker: one of its own instead of ``Breaker(observer=observer)``.

    Attributes:
        breaker: its ``state`` and ``changes``.
        prefixes: beginnings of the keys that are this cache's own: all of it is deleted where more invalidations
            were missed than could be remembered.
        sync: set, get, delete and exists for plain functions.

    Raises:
        CacheError: if that is no such address.

    An async context manager. Several event loops may use it: each gets a connection of its own.
    """

    def __init__(
        self,
        url: str | Callable[[], str] = "redis://127.0.0.1:6379/0",
        *,
        timeout: float = 0.05,
        max_connections: int = 32,
        observer: Observer | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self.timeout = timeout
        self.breaker = breaker or Breaker(observer=observer)
        self.prefixes: set[str] = set()
        self._given = url
        if isinstance(url, str):
            self.address()
        self._debts = Debts(self.breaker.lock, self.prefixes)
        self._probing = threading.Lock()
        self._link: Link | ClusterLink | None = None  # the one used last
        self._links: dict[asyncio.AbstractEventLoop, Link | ClusterLink] = {}
        self._aside: set[Link | ClusterLink] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.sync = SyncClient(Blocking(self, max_connections))

    async def call(self, *words: Word) -> Any:
        """The answer to any command, as bytes. Raises ``Unavailable``."""
        link = self._link
        if link is None or not link.usable or link.loop is not asyncio.get_running_loop():
            begun = asyncio.get_running_loop().time()
            link = await self._connected()
            answer = await link.ask(words, max(0.001, begun + self.timeout - link.loop.time()))
        else:
            answer = await link.ask(words)
        return _accepted(answer)

    async def block(self, seconds: float, *words: Word) -> Any:
        self.use()
        link = self._open()
        self._aside.add(link)
        try:
            await asyncio.shield(link.opened)
            return _accepted(await link.ask(words, seconds + LATE))
        finally:
            self._aside.discard(link)
            link.close()

    async def forget(self, keys: Sequence[str] = (), tags: Sequence[str] = ()) -> bool:
        # A caller who is cancelled has changed the data already: what it began is brought to its end.
        return await asyncio.shield(self.spawn(super().forget(keys, tags)))

    forget.__doc__ = Commands.forget.__doc__

    def owe(self, keys: Iterable[str], tags: Iterable[str], reason: str) -> None:
        with self.breaker.lock:
            self._debts.add(keys, tags)
            if self.breaker.closed:
                self.trip(reason)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something in the background; ``close`` ends it."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """End what runs in the background and close the connections; the next call opens them again."""
        loop = asyncio.get_running_loop()
        mine = [task for task in self._tasks - {asyncio.current_task()} if task.get_loop() is loop]
        _, slow = await asyncio.wait(mine, timeout=self.timeout) if mine else ((), ())
        for task in slow:
            task.cancel()
        links = [link for link in self._leave() if link.loop is loop]
        for link in links:
            link.close()
        await asyncio.gather(*slow, *(link.task for link in links if link.task), return_exceptions=True)
        self.sync.commands.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    def __del__(self) -> None:
        if "_link" in self.__dict__:  # else __init__ has failed
            self._leave()

    def use(self) -> None:
        """Raise ``Unavailable`` unless Redis may be used; start a probe if it is time."""
        if self.breaker.closed:
            return
        if self.breaker.due():
            threading.Thread(target=self._probe, name="labkit-cache-probe", daemon=True).start()
        raise Unavailable(self.breaker.state)

    async def _connected(self) -> Link | ClusterLink:
        """The connection of the running loop. The first caller opens it, the others wait for that."""
        self.use()
        loop = asyncio.get_running_loop()
        link = self._links.get(loop)
        if link is None or link.closed:
            for ended in [each for each in tuple(self._links) if each.is_closed()]:
                self._links.pop(ended, None)
            link = self._links[loop] = self._open()
        self._link = link
        await asyncio.shield(link.opened)
        return link

    def _open(self) -> Link | ClusterLink:
        me = weakref.ref(self)  # a client that is forgotten takes its connection along

        def lost(reason: str) -> None:
            if (client := me()) is not None:
                client.trip(reason)

        url = self.address()
        return (ClusterLink if self.slots else Link)(url, self.timeout, lost)

    def address(self) -> str:
        """Where Redis is; asked whenever a connection is opened. Raises ``Unavailable`` if there is none."""
        url = self._given if isinstance(self._given, str) else self._given()
        if not url:
            raise Unavailable("no address")
        try:
            known = url.startswith(_SCHEMES) and urlsplit(url).port != 0
        except ValueError:
            known = False
        if not known:
            raise CacheError(say("cache.bad_url", url=url))
        self.slots = "+cluster://" in url
        return url

    def trip(self, reason: str) -> None:
        """Redis did not answer: nobody asks it until a probe has found it back."""
        self.breaker.trip(reason)
        self._leave()

    def _leave(self) -> list[Link | ClusterLink]:
        """Drop every connection, from whichever thread: nobody is served from them any more."""
        left = [*self._links.values(), *self._aside]
        self._link, self._links = None, {}
        for link in left:
            link.leave()
        return left

    def _probe(self) -> None:
        """Look for Redis, pay what is owed to it, and only then close the breaker. In a thread of its own."""
        probe = Blocking(self, 1, probe=True)
        try:
            with self._probing:
                finished(probe.call("PING"))
                while not self.breaker.close(unless=self._debts.__bool__) and self.breaker.state == "half_open":
                    finished(self._debts.pay(probe, probe.redis().scan_iter))
        except Exception as error:  # whatever it is: nobody waits for this thread
            self.trip(str(error))
        finally:
            probe.close()


def _accepted(answer: Any) -> Any:
    if answer.__class__ is hiredis.ReplyError:
        raise Unavailable(str(answer))
    return answer
