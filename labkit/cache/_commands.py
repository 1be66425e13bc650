"""What the cache asks of Redis, written once for both faces.

These are coroutines over one method, ``call``. Where ``call`` waits by blocking (``_sync``), none of them ever
suspends, and ``finished`` runs it like a plain function.
"""

from __future__ import annotations

import functools
import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from labkit._text import say
from labkit.cache.codec import Codec, Corrupt
from labkit.errors import CacheError

T = TypeVar("T")
AWAY = (OSError, RedisError, RedisClusterException, ValueError)  # what redis-py raises where Redis does not answer
Word = bytes | str | int | float

GRAVE = 600  # seconds that a tag remembers its last invalidation; no fill takes longer
LATE = 0.5  # seconds that Redis may be late to end a command that blocks: it looks ten times a second
_CHUNK = 500  # keys of one command

# A tag is a sorted set of keys, by when they were added. Some of those that were there at the time of the invalidation
# are given; the next call takes them out, unless they have been added anew meanwhile, and gives the next.
_BURY = f"""
local upto = ARGV[1]
if upto then
  for i = 2, #ARGV do
    local added = redis.call('ZSCORE', KEYS[1], ARGV[i])
    if added and tonumber(added) <= tonumber(upto) then redis.call('ZREM', KEYS[1], ARGV[i]) end
  end
else
  local now = redis.call('TIME')
  upto = string.format('%.0f', now[1] * 1000000 + now[2])
  redis.call('SET', KEYS[2], upto, 'EX', {GRAVE})
end
local found = redis.pcall('ZRANGEBYSCORE', KEYS[1], 0, upto, 'LIMIT', 0, {_CHUNK})
if found.err then found = {{}} end -- no set: somebody else's, and nothing of ours has this tag
return {{upto, found}}
"""


class Unavailable(Exception):
    """Redis is away, silent or refuses. Never leaves the cache: it runs the function instead."""


def why(error: Exception) -> str:
    """In a word or two, for a log: why Redis did not answer."""
    if isinstance(error, NoScriptError):
        return "NOSCRIPT"  # redis-py leaves the word out
    return "timeout" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"


def token_of(key: str) -> str:
    """The name under which the fill of ``key`` holds its lock: in the same slot of a cluster, thanks to the braces."""
    return f"{key}:fill" if "{" in key else f"{{{key}}}:fill"


def grave_of(tag: str) -> str:
    """The name under which ``tag`` keeps when it was last invalidated, in microseconds of Redis' own clock."""
    return f"{tag}:gone" if "{" in tag else f"{{{tag}}}:gone"


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("this coroutine waits for an event loop")


def plain(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """A coroutine function that never suspends, as a plain function."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return finished(function(*args, **kwargs))

    return run


@functools.cache
def _digest(script: str) -> str:
    """What Redis calls a script that it has seen."""
    return hashlib.sha1(script.encode()).hexdigest()


def checked_ttl(ttl: float) -> float:
    """Seconds to live, if it is a time that Redis can keep.

    Raises:
        CacheError: if it is not a number above 0.
    """
    number = isinstance(ttl, int | float) and not isinstance(ttl, bool)
    if not (number and 0 < ttl <= 3_000_000_000 and math.isfinite(ttl)):
        raise CacheError(say("cache.bad_ttl", ttl=repr(ttl)))
    return float(ttl)


class Commands(ABC):
    """Reads, writes and invalidations. Names of keys and tags are text; what lies in Redis is bytes.

    Attributes:
        slots: whether the server is a cluster, where one command takes keys of one slot only.
        codec: makes bytes of the values of ``set``.
    """

    slots = False
    codec = Codec()

    @abstractmethod
    async def call(self, *words: Word) -> Any:
        """The answer to any command, as bytes. Raises ``Unavailable``."""

    @abstractmethod
    async def block(self, seconds: float, *words: Word) -> Any:
        """The answer to a blocking command (XREAD BLOCK), on a connection of its own, waited for ``seconds``.

        Raises ``Unavailable``, also if there is no answer by then."""

    @abstractmethod
    def owe(self, keys: Iterable[str], tags: Iterable[str], reason: str) -> None:
        """Remember an invalidation that Redis has not confirmed, and read nothing until it has."""

    async def read(self, key: str) -> bytes | None:
        """The bytes under ``key``, or None. Raises ``Unavailable``."""
        return await self.call("GET", key)  # type: ignore[no-any-return]

    async def write(self, key: str, data: bytes, ttl: float) -> None:
        """Keep bytes for ``ttl`` seconds. Raises ``Unavailable``."""
        await self.call("SET", key, data, "PX", max(1, round(ttl * 1000)))

    async def run(self, script: str, keys: Sequence[str] = (), args: Sequence[Word] = ()) -> Any:
        """Run a Lua script: sent whole the first time, called by its digest from then on. Raises ``Unavailable``."""
        rest = (len(keys), *keys, *args)
        try:
            return await self.call("EVALSHA", _digest(script), *rest)
        except Unavailable as refused:
            if not str(refused).startswith("NOSCRIPT"):
                raise
        return await self.call("EVAL", script, *rest)

    async def forget(self, keys: Sequence[str] = (), tags: Sequence[str] = ()) -> bool:
        """Delete the values under ``keys``, and those under ``tags``, with the tokens of their fills.

        A tag is a set of keys. A fill adds its key to the set, unless ``grave_of(tag)`` is younger than its own
        beginning, and only then stores the value with its token: so an invalidation at any moment wins, and no
        command touches two slots of a cluster.

        Returns:
            whether Redis confirmed it. If not, it is remembered and done before this client reads again: nobody
            gets a value older than an invalidation from this process. Another process may see the old value
            until then, or until the value's time is over if this process ends first.
        """
        try:
            await self.wipe(keys, tags)
        except BaseException as error:  # also where it is cut short
            self.owe(keys, tags, str(error))
            if isinstance(error, Unavailable):
                return False
            raise
        return True

    async def get(self, key: str) -> Any:
        """The value under ``key``; None if there is none, it is unusable or Redis is away."""
        try:
            data = await self.read(key)
            return None if data is None else self.codec.loads(data)
        except (Unavailable, Corrupt):
            return None

    async def set(self, key: str, value: Any, ttl: float = 300) -> bool:
        """Keep a value for ``ttl`` seconds; whether Redis confirmed it. If not, an older value goes too.

        Raises:
            CacheError: if ``ttl`` is no time, or the value would not come back as it is.
        """
        seconds, data = checked_ttl(ttl), self.codec.dumps(value)
        try:
            await self.write(key, data, seconds)
        except Unavailable:
            await self.forget((key,))
            return False
        return True

    async def delete(self, *keys: str) -> bool:
        """Delete; whether there was something to delete. False if Redis is away: it is done when it is back."""
        try:
            return await self.unlink(keys) > 0
        except Unavailable as error:
            self.owe(keys, (), str(error))
            return False

    async def exists(self, key: str) -> bool:
        """Whether there is a value under ``key``; False if Redis is away."""
        try:
            return bool(await self.call("EXISTS", key))
        except Unavailable:
            return False

    async def wipe(self, keys: Iterable[str], tags: Iterable[str]) -> None:
        """What ``forget`` does, if all goes well. Raises ``Unavailable``."""
        await self.unlink([name for key in keys for name in (key, token_of(key))])
        for tag in tags:
            upto, members = await self.run(_BURY, (tag, grave_of(tag)))
            while members:
                keys = [member.decode(errors="replace") for member in members]
                await self.unlink([name for key in keys for name in (key, token_of(key))])
                _, members = await self.run(_BURY, (tag, grave_of(tag)), (upto, *members))

    async def unlink(self, names: Sequence[str]) -> int:
        """Delete these names; how many there were. Raises ``Unavailable``."""
        size = 1 if self.slots else _CHUNK
        return sum([await self.call("UNLINK", *names[i : i + size]) for i in range(0, len(names), size)])
