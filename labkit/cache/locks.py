"""Who computes a key, across processes: a token in Redis that its owner renews, and a wake-up for those who wait.

Beside a value ``key`` there may be ``{key}:fill``, which holds the token of whoever computes it, and
``{key}:<token>``, a stream in which the end of that computation is announced. An invalidation deletes the token
with the value; what is stored without its token is refused. So an invalidation during a fill wins.

A tag is a sorted set of keys by the microsecond they were added at; what must have expired is taken out as others come.
Its member of no name holds, below 0, the longest life of all.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from labkit.cache._commands import Commands
from labkit.cache.client import grave_of, token_of

LEASE = 5.0  # seconds that a token lives unless it is renewed: what a dead owner costs the others at most
_HEARD = 10_000  # milliseconds that the announcement can be read
_SLACK = 60_000  # milliseconds that a tag knows a key beyond its value's life, which begins a little later

_TAKE = """
local value = redis.call('GET', KEYS[1])
if value and (not ARGV[3] or string.sub(value, 1, #ARGV[3]) ~= ARGV[3]) then return value end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return redis.call('TIME') end
return {redis.call('GET', KEYS[2])}
"""
_SEIZE = "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return redis.call('TIME')"
_RENEW = "return redis.call('GET', KEYS[1]) == ARGV[1] and redis.call('PEXPIRE', KEYS[1], ARGV[2])"
_FINISH = f"""
local mine = redis.call('GET', KEYS[2]) == ARGV[1]
if mine then
  redis.call('DEL', KEYS[2])
  if ARGV[2] ~= '0' then redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2]) end
end
redis.call('XADD', KEYS[3], '*', 'over', '1')
redis.call('PEXPIRE', KEYS[3], {_HEARD})
return mine
"""
_TAG = f"""
local gone = redis.call('GET', KEYS[2])
if gone and tonumber(gone) >= tonumber(ARGV[2]) then return false end
local time, keep = redis.call('TIME'), ARGV[3] * 1000
local now, longest = time[1] * 1000000 + time[2], math.max(keep, -(redis.call('ZSCORE', KEYS[1], '') or 0))
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1], string.format('%.0f', -longest), '')
local old = string.format('%.0f', now - longest - {_SLACK} * 1000)
for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], 0, old, 'LIMIT', 0, 100)) do
  redis.call('ZREM', KEYS[1], key)
end
if redis.call('PTTL', KEYS[1]) < ARGV[3] + {_SLACK} then redis.call('PEXPIRE', KEYS[1], ARGV[3] + {_SLACK}) end
return true
"""


@dataclass(slots=True, eq=False)
class Lock:
    """The right to compute ``key``, held since ``began`` (microseconds of Redis' own clock)."""

    redis: Commands
    key: str
    token: str
    began: int
    over: bool = False

    async def renew(self) -> bool:
        """Hold it ``LEASE`` seconds more; False if it is lost."""
        return bool(await self.redis.run(_RENEW, (token_of(self.key),), (self.token, round(LEASE * 1000))))

    async def finish(self, data: bytes = b"", ttl: float = 0.0) -> bool:
        """Give it back, wake whoever waits, and store ``data`` for ``ttl`` seconds (0: nothing).

        Returns:
            whether the lock was still held, and so ``data`` was stored.
        """
        if self.over:
            return False
        self.over = True
        keys = (self.key, token_of(self.key), _stream(self.key, self.token))
        return bool(await self.redis.run(_FINISH, keys, (self.token, round(ttl * 1000), data)))

    async def tag(self, tag: str, ttl: float) -> bool:
        """Note that the value, which will be stored for ``ttl`` seconds, has ``tag``; False if that was invalidated."""
        words = (self.key, self.began, round(ttl * 1000))
        return bool(await self.redis.run(_TAG, (tag_key(tag), grave_of(tag_key(tag))), words))


def tag_key(tag: str) -> str:
    """The name of the set in Redis that holds the keys with ``tag``."""
    return f"tag:{tag.encode(errors='backslashreplace').decode()}"  # half a surrogate pair has no name in Redis


async def take(redis: Commands, key: str, seen: bytes | None) -> Lock | bytes | str:
    """The lock of ``key``; or its value, unless that begins with ``seen``; or the token of whoever has the lock."""
    token = secrets.token_hex(8)
    answer = await redis.run(
        _TAKE, (key, token_of(key)), (token, round(LEASE * 1000), *([] if seen is None else [seen]))
    )
    if isinstance(answer, bytes):
        return answer
    return Lock(redis, key, token, _moment(answer)) if len(answer) == 2 else (answer[0] or b"").decode()


async def seize(redis: Commands, key: str) -> Lock:
    """The lock of ``key``, whoever had it."""
    token = secrets.token_hex(8)
    answer = await redis.run(_SEIZE, (token_of(key),), (token, round(LEASE * 1000)))
    return Lock(redis, key, token, _moment(answer))


async def wait(redis: Commands, key: str, token: str) -> None:
    """Wait until the owner of ``token`` has ended, at most ``LEASE`` seconds."""
    await redis.block(LEASE, b"XREAD", b"BLOCK", round(LEASE * 1000), b"STREAMS", _stream(key, token), b"0")


def _stream(key: str, token: str) -> str:
    return token_of(key).removesuffix("fill") + token


def _moment(answer: list[bytes]) -> int:
    return int(answer[0]) * 1_000_000 + int(answer[1])
