"""The notebook's cache made of right pieces, one of which is the learner's: so each check judges one thing."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import types
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar, get_type_hints

import redis
from sqlalchemy.orm import Session

from labkit.course.checks import Context, Verdict
from labkit.course.probe import PATH, Answer, Endpoint, Probe

T = TypeVar("T")
PREFIX = "check"

Run = Callable[[], Awaitable[Any]]
Key = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], str], str]
Once = Callable[[str, Run], Awaitable[Any]]


class Client(Protocol):
    """What the decorator wants of a cache client."""

    def get(self, key: str) -> Any: ...

    def set(self, key: str, value: Any, ttl: int) -> Any: ...

    def delete(self, key: str) -> Any: ...


class RightClient:
    """Values as JSON in Redis.

    Attributes:
        refused: types of values that JSON does not know.
    """

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2)
        self.refused: list[str] = []

    def get(self, key: str) -> Any:
        return json.loads(self._redis.get(key) or "null")

    def set(self, key: str, value: Any, ttl: int = 60) -> None:
        try:
            text = json.dumps(value)
        except TypeError:
            self.refused.append(type(value).__name__)
            return
        self._redis.set(key, text, ex=ttl)

    def delete(self, key: str) -> bool:
        return bool(self._redis.delete(key))

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin so."""
        return [key.decode() for key in self._redis.scan_iter(f"{prefix}*", count=1000)]

    def close(self) -> None:
        self._redis.close()


def right_parts(arguments: Mapping[str, Any]) -> list[str]:
    """Names and values, without sessions."""
    return [f"{name}:{value!r}" for name, value in sorted(arguments.items()) if not isinstance(value, Session)]


def right_key(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], prefix: str) -> str:
    """One key for a question, however it is asked."""
    bound = inspect.signature(func).bind_partial(*args, **kwargs)
    bound.arguments.pop("db", None)
    return ":".join([prefix, func.__name__, *right_parts(bound.arguments)])


async def each_alone(key: str, run: Run) -> Any:
    """No protection from a stampede: what the other exercises need no better."""
    return await run()


def composed(client: Client, key: Key = right_key, once: Once = each_alone) -> Callable[[Endpoint], Endpoint]:
    """The notebook's ``cached`` of these pieces, for an hour."""

    def decorator(func: Endpoint) -> Endpoint:
        func.__annotations__ = get_type_hints(func)  # as in a notebook, where annotations are no texts

        @functools.wraps(func)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            name = key(func, args, kwargs, PREFIX)

            async def run() -> Any:
                result = await func(*args, **kwargs)
                client.set(name, result, 3600)
                return result

            found = client.get(name)
            return await once(name, run) if found is None else found

        def invalidate(*args: Any, **kwargs: Any) -> Any:
            return client.delete(key(func, args, kwargs, PREFIX))

        wrapper.invalidate = invalidate  # type: ignore[attr-defined]
        return wrapper

    return decorator


def rebound(function: Callable[..., T], **pieces: Any) -> Callable[..., T]:
    """The learner's function with other pieces under the names that it looks up in the notebook."""
    code = getattr(function, "__code__", None)
    if not isinstance(function, types.FunctionType) or code is None:
        return function
    copy = types.FunctionType(
        code, {**function.__globals__, **pieces}, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(copy, function)


@contextmanager
def right_client(ctx: Context) -> Iterator[RightClient]:
    """A client on the Redis of the lesson."""
    client = RightClient(ctx.lab.app.state.redis_url)
    try:
        yield client
    finally:
        client.close()


def counted(probe: Probe, answers: Iterable[Answer]) -> dict[str, int]:
    """What the sentences say in numbers."""
    outcomes = [answer.outcome for answer in answers]
    counts = {name: outcomes.count(name) for name in ("hit", "stale", "foreign", "failed")}
    return counts | {"asked": len(outcomes), "runs": len(probe.runs), "keys": len(probe.keys())}


def unharmed(answers: Iterable[Answer]) -> None:
    """Raise a verdict with the learner's line if one of the requests raised."""
    for answer in answers:
        if answer.reply.error:
            raise Verdict(
                "error", "course.endpoint_raised", path=f"{PATH}/{answer.asked}", code=str(answer.reply.error)
            )


async def settled(*running: Awaitable[Any], seconds: float = 3.0) -> list[Any]:
    """The results or exceptions of these; ``TimeoutError`` for what does not end."""

    async def one(what: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(asyncio.ensure_future(what), seconds)

    return await asyncio.gather(*map(one, running), return_exceptions=True)
