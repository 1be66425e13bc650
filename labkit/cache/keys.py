"""Names of cache entries: short, readable in MONITOR, the same in every process, and different for different values."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import orjson

from labkit._text import say
from labkit.cache.codec import Refused, Writer, class_name
from labkit.errors import CacheError

_SIMPLE = frozenset({int, str, bool, float, bytes, type(None)})  # whose ascii() says type and value, in every process

_TOOL = re.compile(
    r"(sqlalchemy|starlette|redis|httpx|labkit|sqlite3|psycopg|aiosqlite|asyncpg)(\..*)?:(async_)?"
    "(scoped_session|sessionmaker|((Async)?(Session|Connection|Engine|Client))|HTTPConnection|Response|BackgroundTasks"
    "|Redis|RedisCluster|CacheClient|Pool)"
)


def is_tool(kind: Any) -> bool:
    """Whether objects of a class are what a function works with, not what it is asked: sessions, requests, clients.

    Told by the names of the class, its bases and their modules, so that none of these is imported.
    """
    return any(_TOOL.fullmatch(class_name(base)) for base in getattr(kind, "__mro__", ()))


class KeyMaker:
    """Makes the keys of one function: ``prefix:function:hash``, or ``function:hash`` without a prefix.

    The hash (BLAKE2b, 80 bits) covers the function's module, name and parameters, and the values with their types;
    in a notebook or script also its source. Applications of the same names in one Redis need prefixes of their own.

    Args:
        prefix: what keys begin with, so that a person finds them.
        function: the function that is cached.
        names: of the values, in their order.
    """

    def __init__(self, prefix: str, function: Any, names: Iterable[str] = ()) -> None:
        qualname: str = function.__qualname__
        self._names = tuple(names)
        self._function = qualname.rpartition(".")[2]
        self.start = f"{prefix}:{self._function}:" if prefix else f"{self._function}:"
        # Lambdas and functions in functions share their names: the line tells them apart.
        line = function.__code__.co_firstlineno if "<" in qualname else ""
        identity = f"{function.__module__}:{qualname}:{line}({','.join(self._names)})"
        if function.__module__ == "__main__":  # a cell is changed and run again: its old answers are of other code
            with suppress(OSError, TypeError):
                identity += inspect.getsource(function)
        self._hash = blake2b(identity.encode() + b"\0", digest_size=10)

    def __call__(self, values: tuple[Any, ...]) -> str:
        """The key of these values.

        Raises:
            CacheError: if one of them is not known by its value: names the parameter, the type and the remedy.
        """
        digest = self._hash.copy()
        try:
            text = ascii(values).encode() if _SIMPLE.issuperset(map(type, values)) else self._forms(values)
        except ValueError:  # an int of more than 4,300 digits
            text = self._forms(values, simple=False)
        digest.update(text)
        return self.start + digest.hexdigest()

    def _forms(self, values: tuple[Any, ...], simple: bool = True) -> bytes:
        values = tuple(None if is_tool(type(value)) else value for value in values)
        if simple and _SIMPLE.issuperset(map(type, values)):
            return ascii(values).encode()
        return b"".join(map(self._form, self._names, values))

    def _form(self, name: str, value: Any) -> bytes:
        try:
            return orjson.dumps(Writer(None).write(value), option=orjson.OPT_SORT_KEYS) + b"\n"
        except Refused as refused:
            path, kind = refused.where(name), refused.kind.__qualname__
            raise CacheError(say("cache.key_type", function=self._function, path=path, type=kind)) from None
        except (RecursionError, orjson.JSONEncodeError):
            raise CacheError(say("cache.key_deep", function=self._function, path=name)) from None
