"""Our cache and its peers behind one face, each as its own documentation sets it up.

The peers are in ``.venv/peers`` (``peers.txt``, ``make bench``). One that is missing is left out and named.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from fastapi import Depends, FastAPI
from fastapi.responses import Response
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from labkit import asgi
from labkit.cache import CacheClient, cached

Work = Callable[..., Awaitable[Any]]
Decorate = Callable[[Work], Work]
Make = Callable[[int], Awaitable[dict[str, Any]]]  # computes the value of an id

sys.path.append(str(Path(sys.prefix) / "peers"))  # last: what the product itself installs goes first
logging.disable(logging.CRITICAL)  # peers report each call that Redis did not answer


class Post(BaseModel):
    """What a user wrote."""

    id: int
    title: str
    tags: list[str]
    likes: int


class User(BaseModel):
    """What is cached."""

    id: int
    name: str
    email: str
    active: bool
    score: float
    posts: list[Post]


def value(size: int) -> dict[str, Any]:
    """A user of about ``size`` bytes of JSON."""
    posts: list[dict[str, Any]] = []
    user = {"id": 1, "name": "Ada Lovelace", "email": "ada@example.org", "active": True, "score": 0.75, "posts": posts}
    while len(orjson.dumps(user)) < size:
        n = len(posts)
        posts.append({"id": n, "title": f"Notes on the engine, part {n}", "tags": ["a", "notes"], "likes": 7 * n})
    return user


def _labkit(url: str, endpoint: bool, stack: AsyncExitStack, timeout: float = 0.05) -> Decorate:
    client = CacheClient(url, timeout=timeout)
    stack.push_async_callback(client.close)
    return cached(300, "bench", client=client)


def _patient(url: str, endpoint: bool, stack: AsyncExitStack) -> Decorate:
    return _labkit(url, endpoint, stack, timeout=5.0)


def _cashews(url: str, endpoint: bool, stack: AsyncExitStack, lock: bool = False) -> Decorate:
    from cashews import Cache

    cache = Cache()
    cache.setup(url)
    stack.push_async_callback(cache.close)
    return lambda function: cache(ttl=300, key=function.__name__ + ":{user_id}", lock=lock)(function)


def _aiocache(url: str, endpoint: bool, stack: AsyncExitStack, name: str = "cached", **options: Any) -> Decorate:
    import aiocache
    from aiocache.serializers import JsonSerializer

    parts = urlsplit(url)
    if endpoint:  # by default a session would be in the key, by its repr
        options["key_builder"] = lambda function, user_id, **others: f"aiocache:{user_id}"
    decorate: Decorate = getattr(aiocache, name)(
        ttl=300,
        cache=aiocache.Cache.REDIS,
        endpoint=parts.hostname,
        port=parts.port,
        serializer=JsonSerializer(),
        **options,
    )
    return decorate


def _locked(url: str, endpoint: bool, stack: AsyncExitStack) -> Decorate:
    return _cashews(url, endpoint, stack, lock=True)


def _stampede(url: str, endpoint: bool, stack: AsyncExitStack) -> Decorate:
    return _aiocache(url, endpoint, stack, "cached_stampede", lease=5)


def _fastapi_cache(url: str, endpoint: bool, stack: AsyncExitStack) -> Decorate:
    from fastapi_cache import FastAPICache
    from fastapi_cache.backends.redis import RedisBackend
    from fastapi_cache.decorator import cache

    redis = Redis.from_url(url)
    stack.push_async_callback(redis.aclose)
    FastAPICache.reset()
    FastAPICache.init(RedisBackend(redis), prefix="fastapi-cache")

    def build(function: Any, namespace: str, *, kwargs: dict[str, Any], **others: Any) -> str:
        return f"{namespace}:{kwargs['user_id']}"

    decorate: Decorate = cache(expire=300, key_builder=build if endpoint else None)
    return decorate


def _cachu(url: str, endpoint: bool, stack: AsyncExitStack) -> Decorate:
    import cachu

    cachu.configure(redis_url=url, backend_default="redis")
    decorate: Decorate = cachu.cache(ttl=300, backend="redis", exclude={"session"})
    return decorate


@dataclass(frozen=True)
class Cache:
    """One of those that are compared.

    Attributes:
        name: what the tables call it.
        distribution: on the package index; empty for ours.
        decorator: makes its decorator for functions, or None if it has one for endpoints alone.
    """

    name: str
    distribution: str
    decorator: Callable[[str, bool, AsyncExitStack], Decorate] | None

    @property
    def missing(self) -> bool:
        """Whether it is not installed."""
        try:
            return bool(self.distribution) and not version(self.distribution)
        except PackageNotFoundError:
            return True

    @property
    def title(self) -> str:
        """Its name and version."""
        return self.name if self.missing or not self.distribution else f"{self.name} {version(self.distribution)}"

    async def function(self, url: str, make: Make, stack: AsyncExitStack) -> Work:
        """A cached function of a user's id; for a cache of endpoints alone, a request to one."""
        if self.decorator is None:
            app = await self.app(url, make, stack)
            return lambda user_id: asgi.call(app, "GET", f"/users/{user_id}")

        async def user(user_id: int) -> dict[str, Any]:
            return await make(user_id)

        return self.decorator(url, False, stack)(user)

    async def app(self, url: str, make: Make, stack: AsyncExitStack) -> FastAPI:
        """An application with one cached endpoint, ``/users/{user_id}``, and its start done."""
        app, session = FastAPI(), _session()

        async def user(user_id: int, session: AsyncSession = Depends(session)) -> dict[str, Any]:
            return await make(user_id)

        if self.decorator is not None:
            app.get("/users/{user_id}", response_model=User)(self.decorator(url, True, stack)(user))
            return app
        from redis_fastapi import FastAPIRedis, cache, get_settings

        get_settings().url = url
        FastAPIRedis(app).lifespan().caching()
        app.get("/users/{user_id}", response_model=User, dependencies=[Depends(cache(ttl=300))])(user)
        await stack.enter_async_context(asgi.Lifespan(app))
        return app


def floor_app(url: str, body: bytes, stack: AsyncExitStack) -> FastAPI:
    """The least that a cached endpoint can cost here: get the bytes by redis-py and send them."""
    app, redis, session = FastAPI(), Redis.from_url(url), _session()
    stack.push_async_callback(redis.aclose)

    @app.get("/users/{user_id}")
    async def user(user_id: int, session: AsyncSession = Depends(session)) -> Response:
        key = f"floor:{user_id}"
        if (found := await redis.get(key)) is None:
            await redis.set(key, found := body)
        return Response(found, media_type="application/json")

    return app


def _session() -> Callable[[], AsyncIterator[AsyncSession]]:
    """A dependency such as most endpoints have. Nothing is opened or closed: that would cost all the same, and much."""
    one = AsyncSession()

    async def session() -> AsyncIterator[AsyncSession]:
        yield one

    return session


CACHES = (
    Cache("labkit.cache", "", _labkit),
    Cache("cashews", "cashews", _cashews),
    Cache("aiocache", "aiocache", _aiocache),
    Cache("fastapi-cache2", "fastapi-cache2", _fastapi_cache),
    Cache("cachu", "cachu", _cachu),
    Cache("fastapi-redis-sdk", "fastapi-redis-sdk", None),
)
# For many callers at once. Ours waits for a busy Redis as long as the peers do; by default it would soon do without.
CROWD = (
    Cache("labkit.cache, timeout=5", "", _patient),
    *CACHES[1:],
    Cache("cashews, lock=True", "cashews", _locked),
    Cache("aiocache, cached_stampede", "aiocache", _stampede),
)
