"""Write-through: the function that updates leaves what it gives in the cache, for the function that reads."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from labkit._text import say
from labkit.cache._commands import plain
from labkit.errors import CacheError

F = TypeVar("F", bound=Callable[..., Any])


def writes(*, to: Any) -> Callable[[F], F]:
    """Store what the decorated function gives as the answer of ``to`` to the same arguments.

    Arguments are the same if they have the same names; the function may have more. Whoever reads meanwhile gets the
    old value, or waits if there is none. Of two that write at once, neither is stored: which was the last, only the
    database knows. Where the function raises, or Redis does not confirm, the old value is forgotten. Commit before
    you return.

    Args:
        to: a function decorated with ``cached``.

    Raises:
        CacheError: if ``to`` is not, if one of the two is ``async def`` and the other is not, or if ``to`` has
            parameters that the function lacks.
    """
    cache = getattr(to, "cache", None)
    if cache is None:
        raise CacheError(say("cached.not_cached", function=getattr(to, "__name__", repr(to))))

    def decorate(function: F) -> F:
        names = list(inspect.signature(function).parameters)
        lacking = [name for name in cache.arguments.names if name not in names and name != "who"]
        if lacking or cache.is_async is not inspect.iscoroutinefunction(function):
            text = say("cached.writes", function=function.__name__, to=to.__name__, names=", ".join(lacking) or "-")
            raise CacheError(text)
        bind = inspect.signature(function).bind

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            bound = bind(*args, **kwargs)
            bound.apply_defaults()
            shared = {n: v for n, v in bound.arguments.items() if n in cache.parameters}
            return await cache.write(function, args, kwargs, cache.arguments.values((), shared))

        return call if cache.is_async else plain(call)  # type: ignore[return-value]

    return decorate
