"""``@cached``: a function or an endpoint whose answers are kept in Redis."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from string import Formatter
from typing import Any, TypeVar

from labkit._text import say
from labkit.cache import _endpoint
from labkit.cache._commands import plain
from labkit.cache._endpoint import EndpointCall
from labkit.cache.arguments import Arguments, hints
from labkit.cache.call import Call
from labkit.cache.client import CacheClient, checked_ttl
from labkit.cache.codec import Codec
from labkit.cache.engine import Engine, Life
from labkit.cache.events import Observer
from labkit.cache.faces import Looping, Threading
from labkit.cache.keys import KeyMaker
from labkit.cache.near import NearCache
from labkit.cache.strategies.aside import CacheAside
from labkit.cache.strategies.base import Strategy
from labkit.errors import CacheError

F = TypeVar("F", bound=Callable[..., Any])
Tags = Sequence[str] | Callable[..., Iterable[str]]


class Cache:
    """What belongs to one cached function. ``cached`` makes it; ``cached_function.cache`` is it.

    Attributes:
        function: the function itself.
        arguments: which of its arguments make the key.
        engine: does the work.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        engine: Engine,
        arguments: Arguments,
        key_prefix: str,
        tags: Tags,
        negative: float | None,
        types: Iterable[Any],
    ) -> None:
        self.function, self.engine, self.arguments = function, engine, arguments
        self.tags, self.negative = tags if callable(tags) else _each(tags), negative
        self.is_async = inspect.iscoroutinefunction(function)
        self.codec = Codec([hints(function).get("return"), *types])
        self.parameters = frozenset(inspect.signature(function).parameters)
        self.repeatable = self.is_async and self.parameters.issubset(arguments.names)
        self._maker = KeyMaker(key_prefix, function, arguments.names)
        self.start = self._maker.start
        self._doubles = _endpoint.doubles(function)
        for tag in () if callable(self.tags) else self.tags:
            try:
                fields = [field for _, field, _, _ in Formatter().parse(tag) if field is not None]
            except ValueError:  # a brace that nothing closes
                fields = [""]
            if not set(arguments.names).issuperset(re.split(r"[.[]", field)[0] for field in fields):
                known = ", ".join(arguments.names)
                raise CacheError(say("cached.bad_tag", tag=tag, function=function.__name__, names=known))

    def key(self, *args: Any, **kwargs: Any) -> str:
        """The name in Redis of the answer to these arguments; sessions and requests may be left out."""
        return self._maker(self.arguments.values(args, kwargs))

    async def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The answer: by a request if there is one in ``kwargs``, else the function's value."""
        if _endpoint.CONNECTION in kwargs:
            return await self._answer(kwargs)
        values = self.arguments.values(args, kwargs)
        key = self._maker(values)
        if self.engine.at_hand is not None and (found := self.engine.glance(key, self.codec)) is not None:
            return found[0]
        return await self.engine.obtain(key, self._call(self.function, args, kwargs, values))

    async def refresh(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the function now and store its value."""
        return await self.write(self.function, args, kwargs, self.arguments.values(args, kwargs))

    async def write(self, function: Callable[..., Any], args: Any, kwargs: Any, values: tuple[Any, ...]) -> Any:
        """Run ``function`` and store its value as the answer to ``values``."""
        return await self.engine.overwrite(self._maker(values), self._call(function, args, kwargs, values))

    async def _answer(self, kwargs: dict[str, Any]) -> Any:
        request, injected = kwargs.pop(_endpoint.CONNECTION), kwargs.pop(_endpoint.RESPONSE)
        for name, ours in self._doubles.items():
            kwargs[name] = injected if ours == _endpoint.RESPONSE else request
        values = self.arguments.values((), kwargs, request)
        run, tags = functools.partial(self._run, self.function, (), kwargs), functools.partial(self._tags, values)
        call = EndpointCall(run, tags, self.codec, self.negative, self.is_async, request, injected)
        if self.arguments.bypasses(request):
            return call.dress((await call.make()).result, "BYPASS", 0)
        key, lock = self._maker(values), request.scope.get(_endpoint.MARK)
        if lock is not None and lock.key == key:
            return await self.engine.fill(lock, call)
        return await self.engine.obtain(key, call)

    def _call(self, function: Callable[..., Any], args: Any, kwargs: Any, values: tuple[Any, ...]) -> Call:
        run = functools.partial(self._run, function, args, kwargs)
        return Call(run, functools.partial(self._tags, values), self.codec, self.negative, self.repeatable)

    async def _run(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return await result if self.is_async else result

    def _tags(self, values: tuple[Any, ...], result: Any) -> tuple[str, ...]:
        if not self.tags:
            return ()
        named = dict(zip(self.arguments.names, values, strict=True))
        if callable(self.tags):
            return _each(self.tags(result, **named))
        return tuple(tag.format_map(named) for tag in self.tags)


def cached(
    ttl: float | Any = 300,
    key_prefix: str = "",
    *,
    client: CacheClient | NearCache,
    strategy: Strategy | None = None,
    tags: Tags = (),
    who: Callable[..., Any] | None = None,
    public: bool = False,
    negative_ttl: float | None = None,
    types: Iterable[Any] = (),
    observer: Observer | None = None,
) -> Callable[[F], Any]:
    """Keep the answers of a function, ``async def`` or ``def``, or of an endpoint (below ``@router.get``), in Redis.

    An endpoint's answer is kept as it is sent, and says ``X-Cache: HIT``, ``MISS``, ``STALE`` (an old one was served)
    or ``BYPASS`` (the cache was not used), and its ``Age`` in seconds. Answers from 400 on, streams and what has a
    cookie or is private are not kept. Concurrent callers share one run, those of other processes too. Where Redis is
    away the function runs, and nothing fails.

    The decorated function has

    - ``key(*args, **kwargs)``: the name in Redis;
    - ``invalidate(*args, **kwargs)``: forget an answer; whether Redis confirmed it. A run under way is not stored;
    - ``invalidate_tag(tag)``: forget all with that tag, whichever function's they are;
    - ``refresh(*args, **kwargs)``: run the function now, and keep what it gives;
    - ``client``.

    All but ``key`` and ``client`` are awaited if the function is ``async def``. Sessions and requests may be left out.

    Args:
        ttl: seconds that an answer is fresh, or something that learns them, as ``AdaptiveTTL``.
        key_prefix: what the names in Redis begin with.
        client: the connection to Redis.
        strategy: what to do about old values; cache-aside by default.
        tags: names with parameters of the function in them (``"user:{user_id}"``), or a function that gives names from
            the result and, by name, from the arguments.
        who: tells who is asking, from the arguments it names and ``request``: each has answers of his own.
        public: whether the answer is the same for everybody, though the endpoint sees who is asking. Without it or
            ``who``, what takes the raw ``Request`` goes past the cache where that tells more than the parameters do:
            who is asking, a body, a query that is not declared. Other headers are never looked at: declare them.
        negative_ttl: seconds for which "not found" (404 and 410, also as ``HTTPException``) is kept; else it is not.
        types: classes of values, besides those in the function's return annotation.
        observer: told of every call.

    Raises:
        CacheError: if an option makes no sense, or the arguments of the function make no key.
    """
    if client is None or not hasattr(client, "forget"):
        raise CacheError(say("cached.no_client", client=repr(client)))
    life: Any = ttl if hasattr(ttl, "filled") else Life(ttl)
    negative = None if negative_ttl is None else checked_ttl(negative_ttl)

    def decorate(function: F) -> Any:
        name = getattr(function, "__name__", repr(function))
        if not inspect.isfunction(inspect.unwrap(function)):  # what belongs to an object has its answers by the object
            raise CacheError(say("cached.no_function", name=name, type=type(function).__name__))
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise CacheError(say("cached.generator", name=name))
        arguments = Arguments(function, who, public)
        face: Looping | Threading = Looping(client) if inspect.iscoroutinefunction(function) else Threading(client)
        engine = Engine(name, face, strategy or CacheAside(), life, observer)
        cache = Cache(function, engine, arguments, key_prefix, tags, negative, types)
        client.prefixes.add(cache.start)

        async def invalidate(*args: Any, **kwargs: Any) -> bool:
            return await engine.forget(cache.key(*args, **kwargs))

        async def invalidate_tag(tag: str) -> bool:
            return await engine.forget_tag(tag)

        async def refresh(*args: Any, **kwargs: Any) -> Any:
            return await cache.refresh(args, kwargs)

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await cache.call(args, kwargs)

        shown: list[Any] = [call, invalidate, invalidate_tag, refresh]
        if not cache.is_async:
            shown = [plain(one) for one in shown]
        wrapper = shown[0]
        wrapper.invalidate, wrapper.invalidate_tag, wrapper.refresh = shown[1:]
        wrapper.key, wrapper.client, wrapper.cache = cache.key, client, cache
        wrapper.__signature__ = _endpoint.signature(function)
        return wrapper

    return decorate


def _each(tags: Iterable[str]) -> tuple[str, ...]:
    return (tags,) if isinstance(tags, str) else tuple(tags)
