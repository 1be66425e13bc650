"""A cache in this process before the one in Redis: a hit costs no round trip, and a change still reaches it.

Redis tells a connection of its own which keys have changed (``CLIENT TRACKING ... BCAST``, since Redis 6). Values are
kept as the bytes that Redis holds and are decoded for each caller anew: nobody can change what another one gets.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Any, Self

import hiredis

from labkit._text import say
from labkit.cache._commands import Commands, Unavailable, Word
from labkit.cache._link import Link
from labkit.cache.client import CacheClient
from labkit.errors import CacheError

_READ = "return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}"


class _Ear(Link):
    """A connection that is also told of changes, between the answers to its own questions."""

    near: NearCache

    def _take(self, answer: Any) -> None:
        if isinstance(answer, hiredis.PushNotification):
            self.near._told(answer)
        else:
            super()._take(answer)

    def close(self, reason: str = "") -> None:
        super().close(reason)
        self.near._deaf()


class NearCache(Commands):
    """A `CacheClient` that answers from memory what it has read before; give it wherever a client is taken.

    What another client changes is gone from here as soon as Redis' message arrives (some 100 µs). What is changed
    through this object is gone when the call returns. A connection that is lost empties the memory at once. One that
    is silent, as when a network fails, is believed for ``lease`` seconds: an answer is never out of date for longer.
    Beside a cluster nothing is kept, and plain functions (``.sync``) read through.

    Args:
        client: where to read what is not here; it may serve others meanwhile.
        prefixes: beginnings of the keys that may be kept here; none = all keys.
        size: bytes of keys and values kept at most; the longest unused go first.
        lease: seconds for which the connection is believed after a sign of life. It is asked three times in that time.
        clock: seconds that never go back; the tests put in a false one.

    Attributes:
        hits, misses: reads answered from memory, and the others.
        bytes: of keys and values kept now.

    Raises:
        CacheError: if an argument is out of range.
    """

    def __init__(
        self,
        client: CacheClient,
        *,
        prefixes: Sequence[str] = (),
        size: int = 16 * 2**20,
        lease: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if size < 1 or not lease > 0 or isinstance(prefixes, str):
            raise CacheError(say("smart.bad_near", given=f"prefixes={prefixes!r}, size={size}, lease={lease}"))
        self.client, self.size, self.lease = client, size, lease
        # Redis refuses a prefix within another; the shorter says it all.
        self._prefixes = {p for p in prefixes if not any(p != each and p.startswith(each) for each in prefixes)}
        self.hits = self.misses = self.bytes = 0
        self._clock, self._until = clock, 0.0
        self._kept: OrderedDict[str, tuple[bytes, float]] = OrderedDict()  # and when it ends
        self._reading: dict[str, object] = {}
        self._ear: _Ear | None = None
        self._task: asyncio.Task[None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    @property
    def active(self) -> bool:
        """Whether Redis tells us of changes, so that memory may answer."""
        return self._clock() < self._until and self.client.breaker.closed

    def at_hand(self, key: str) -> bytes | None:
        """What memory holds under ``key``, if that may be believed now."""
        now = self._clock()
        if (kept := self._kept.get(key)) and now < kept[1] and now < self._until and self.client.breaker.closed:
            self._kept.move_to_end(key)
            self.hits += 1
            return kept[0]
        return None

    async def read(self, key: str) -> bytes | None:
        if (data := self.at_hand(key)) is not None:
            return data
        now = self._clock()
        self.misses += 1
        self._listen()
        if now >= self._until or not key.startswith(tuple(self._prefixes) or ""):
            return await self.client.read(key)
        mark = self._reading[key] = object()
        try:
            data, left = await self.client.run(_READ, [key])
            # Without its mark the key was changed since we asked: what we got may be the value before.
            if data is not None and left and self._reading.get(key) is mark:
                self._keep(key, data, now + left / 1000 if left > 0 else math.inf)
        finally:
            if self._reading.get(key) is mark:
                del self._reading[key]
        return data  # type: ignore[no-any-return]

    async def call(self, *words: Word) -> Any:
        try:
            return await self.client.call(*words)
        finally:  # whatever it was: what it names may have changed
            self._drop(*(word for word in words if isinstance(word, str)))

    async def block(self, seconds: float, *words: Word) -> Any:
        return await self.client.block(seconds, *words)

    def owe(self, keys: Iterable[str], tags: Iterable[str], reason: str) -> None:
        self.client.owe(keys, tags, reason)

    async def forget(self, keys: Sequence[str] = (), tags: Sequence[str] = ()) -> bool:
        done = await self.client.forget(keys, tags)
        self._drop(*keys)
        if not done:
            self._deaf()
        elif tags and self._ear is not None and self.active:
            with suppress(Unavailable):  # Redis tells what it has to tell before it answers
                await self._ear.ask(("PING",))
        return done

    async def close(self) -> None:
        """Stop listening and forget everything; the client is left open."""
        task, self._task = self._task, None
        if task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        state = say("smart.near_on" if self.active else "smart.near_off")
        return say(
            "smart.near", keys=len(self._kept), bytes=self.bytes, hits=self.hits, misses=self.misses, state=state
        )

    def _keep(self, key: str, data: bytes, until: float) -> None:
        self._drop(key)
        self._kept[key] = data, until
        self.bytes += len(key) + len(data)
        while self.bytes > self.size:
            self._drop(next(iter(self._kept)))

    def _drop(self, *keys: str) -> None:
        for key in keys:
            self._reading.pop(key, None)
            if (kept := self._kept.pop(key, None)) is not None:
                self.bytes -= len(key) + len(kept[0])

    def _told(self, push: list[Any]) -> None:
        if push[1] is None:  # everything (FLUSHALL)
            self._deaf()
        else:
            self._drop(*(key.decode(errors="replace") for key in push[1]))

    def _deaf(self) -> None:
        """Forget everything and believe nothing, until the next sign of life."""
        self._until, self.bytes = 0.0, 0
        self._kept.clear()
        self._reading.clear()

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._deaf()
            self._task = loop.create_task(self._live(), context=Context())

    async def _live(self) -> None:
        """Keep a connection that listens; every sign of life makes memory good for another lease."""
        prefixes = [word for prefix in self._prefixes for word in ("PREFIX", prefix)]
        me = asyncio.current_task()
        while self._task is me:  # until another loop takes over
            with suppress(Exception):  # no address, no Redis, no such command: all is read through
                ear = self._ear = _Ear(self.client.address(), self.client.timeout, lambda reason: None)
                ear.near = self
                try:
                    await asyncio.shield(ear.opened)
                    for words in (("HELLO", 3), ("CLIENT", "TRACKING", "ON", "BCAST", *prefixes)):
                        if isinstance(answer := await ear.ask(words), hiredis.ReplyError):
                            raise answer
                    while self._task is me and not ear.closed:
                        asked = self._clock()
                        await ear.ask(("PING",))
                        self._until = asked + self.lease
                        await asyncio.wait([ear._over], timeout=self.lease / 3)
                finally:
                    ear.close()
            await asyncio.sleep(min(0.25, self.lease / 4))
