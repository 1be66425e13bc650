"""Which arguments of a call make its key: bound to their names, without sessions and requests, with who is asking."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from labkit._text import say
from labkit.cache.keys import is_tool
from labkit.errors import CacheError

_INJECTED: Any = object()  # what stands for an argument that FastAPI fills in and nobody gave
_EMPTY = inspect.Parameter.empty
_TELLING = frozenset(("authorization", "proxy-authorization", "cookie"))


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function; one that cannot be resolved (a name only type checkers import) stays as it is."""
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError):
        return dict(function.__annotations__)


class Arguments:
    """How the arguments of one function become the values of its key.

    Left out are the parameters annotated with tools (sessions, requests, clients), also those that ``Depends`` fills
    from a dependency annotated so, and the ``Depends`` parameters that ``who`` names.

    Args:
        function: the function that is cached, or the endpoint.
        who: tells who is asking from the arguments it names (and ``request``); its result is part of the key.
        public: whether the answer is the same for everybody, whoever asks.

    Attributes:
        names: of the values that make the key, in their order.

    Raises:
        CacheError: if the function is a method, if ``who`` names what there is not, or if an endpoint's answer
            depends on who is asking and neither ``who`` nor ``public`` is given.
    """

    def __init__(
        self, function: Callable[..., Any], who: Callable[..., Any] | None = None, public: bool = False
    ) -> None:
        self._name = function.__name__
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters
        found = hints(function)
        first = next(iter(parameters), "")
        if first in ("self", "cls"):
            raise CacheError(say("cache.method", function=function.__qualname__, name=first))
        self._who = who
        self._asks = tuple(inspect.signature(who).parameters) if who else ()
        for name in self._asks:
            if name not in parameters and name != "request":
                raise CacheError(
                    say("cache.who_unknown", function=self._name, name=name, names=", ".join([*parameters, "request"]))
                )
        self._positional = [name for name, p in parameters.items() if p.kind <= p.POSITIONAL_OR_KEYWORD]
        self._by_name = frozenset(
            n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        )
        self._rest = next((name for name, p in parameters.items() if p.kind is p.VAR_POSITIONAL), None)
        self._more = next((name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
        self._defaults = {
            n: p.default for n, p in parameters.items() if not (p.default is _EMPTY or _markers(p.default, None))
        }
        kept = []
        for name, p in parameters.items():
            markers = _markers(p.default, found.get(name))
            depends = next((marker for marker in markers if hasattr(marker, "dependency")), None)
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                continue
            if _names_tool(found.get(name)) or (depends and (name in self._asks or _gives_tool(depends.dependency))):
                continue
            default = p.default
            if markers and (default is _EMPTY or default in markers):
                default = _INJECTED
            place = self._positional.index(name) if name in self._positional else len(parameters)
            kept.append((name, place, default))
        self._kept = tuple(kept)
        extra = [name for name in (self._rest, self._more) if name]
        self.names = (*(name for name, _, _ in kept), *extra, *(["who"] if who else []))
        # All arguments given by position and all of them in the key: the values are the arguments.
        self._as_is = len(kept) if len(kept) == len(parameters) == len(self._positional) and not who else -1
        self._sees_request = False
        injected = (_markers(p.default, found.get(n)) or _is_request(found.get(n)) for n, p in parameters.items())
        if who is None and not public and any(injected):
            self._look_into(function)

    def values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], request: Any = None) -> tuple[Any, ...]:
        """The values that make the key of a call. What is left out may be missing.

        Raises:
            TypeError: if the function cannot be called so.
            CacheError: if an argument that only FastAPI fills in, or one that ``who`` needs, is missing.
        """
        count = len(args)
        if not kwargs and count == self._as_is:
            return args
        if "request" in self._asks and "request" in kwargs and "request" not in self._by_name:
            request, kwargs = kwargs["request"], {k: v for k, v in kwargs.items() if k != "request"}
        values = [args[place] if place < count else kwargs.get(name, default) for name, place, default in self._kept]
        over = count > len(self._positional) and not self._rest
        twice = kwargs and count and not kwargs.keys().isdisjoint(self._positional[:count])
        strange = not self._more and not self._by_name.issuperset(kwargs)
        if over or twice or strange or any(value is _INJECTED or value is _EMPTY for value in values):
            self._complain(args, kwargs)
        if self._rest:
            values.append(args[len(self._positional) :])
        if self._more:
            values.append({name: value for name, value in kwargs.items() if name not in self._by_name})
        if self._who:
            values.append(self._asker(args, kwargs, request))
        return tuple(values)

    def bypasses(self, request: Any) -> bool:
        """Whether a request goes past the cache: it says who is asking, the code sees it, nothing parts the answers."""
        return self._sees_request and ("authorization" in request.headers or "cookie" in request.headers)

    def _complain(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        bound = self._signature.bind_partial(*args, **kwargs).arguments
        for name, _, default in self._kept:
            if name not in bound and default is _INJECTED:
                raise CacheError(say("cache.argument_missing", function=self._name, name=name))
            if name not in bound and default is _EMPTY:
                raise TypeError(f"{self._name}() missing a required argument: {name!r}")

    def _asker(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], request: Any) -> Any:
        given = {**self._defaults, **dict(zip(self._positional, args, strict=False)), **kwargs}
        if request is not None:
            given.setdefault("request", request)
        for name in self._asks:
            if name not in given:
                raise CacheError(say("cache.who_missing", function=self._name, name=name))
        return self._who(**{name: given[name] for name in self._asks})  # type: ignore[misc]

    def _look_into(self, function: Callable[..., Any]) -> None:
        """What FastAPI would read from a request for this endpoint, its dependencies included."""
        from fastapi.dependencies.utils import get_dependant
        from fastapi.exceptions import FastAPIError
        from fastapi.security.base import SecurityBase

        try:
            todo = [get_dependant(path="/", call=function)]
        except (FastAPIError, AssertionError):  # no endpoint, then: FastAPI will not take it either
            return
        while todo:
            part = todo.pop()
            todo += part.dependencies
            telling = [field.alias for field in part.cookie_params]
            telling += [name for field in part.header_params for name in _headers(field) if name in _TELLING]
            if isinstance(part.call, SecurityBase):
                telling.append(type(part.call).__name__)
            if telling:
                raise CacheError(say("cache.depends_on_who", function=self._name, name=telling[0]))
            self._sees_request |= bool(part.request_param_name or part.http_connection_param_name)


def _headers(field: Any) -> Iterator[str]:
    """The headers of one parameter, or of the fields of a model of headers."""
    inside = getattr(field.field_info.annotation, "model_fields", None)
    names = (info.alias or name for name, info in inside.items()) if inside else (field.alias,)
    return (name.lower().replace("_", "-") for name in names)


def _markers(default: Any, hint: Any) -> list[Any]:
    """What FastAPI reads beside a parameter: ``Depends``, ``Query`` and the like."""
    found = [default, *(get_args(hint)[1:] if get_origin(hint) is Annotated else ())]
    return [marker for marker in found if type(marker).__module__ == "fastapi.params"]


def _is_request(hint: Any) -> bool:
    return any(base.__name__ == "HTTPConnection" for base in getattr(hint, "__mro__", ()))


def _names_tool(hint: Any) -> bool:
    """Whether an annotation means a tool: itself, in ``Annotated`` or ``X | None``."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return any(is_tool(get_origin(part) or part) for part in parts)


def _gives_tool(dependency: Any) -> bool:
    """Whether a dependency returns or yields a tool, by its annotation."""
    gives = hints(dependency).get("return") if inspect.isroutine(dependency) else dependency
    return _names_tool(gives) or any(map(_names_tool, get_args(gives)[:1]))
