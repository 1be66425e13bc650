"""Which arguments of a call make its key: bound to their names, without sessions and requests, with who is asking."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from labkit._text import say
from labkit.cache.keys import is_tool
from labkit.errors import CacheError

_INJECTED: Any = object()  # what stands for an argument that FastAPI fills in and nobody gave
_EMPTY = inspect.Parameter.empty
_TELLING = frozenset(("authorization", "proxy-authorization", "cookie"))


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function; one that cannot be resolved (a name only type checkers import) stays as it is."""
    found = dict(getattr(function, "__annotations__", {}))
    space = getattr(inspect.unwrap(function), "__globals__", {})
    for name, hint in found.items():
        one = SimpleNamespace(__annotations__={name: hint})
        with suppress(NameError, TypeError):
            found |= get_type_hints(one, space, include_extras=True)
    return found


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
        self._name, self._who = function.__name__, who
        self._signature = inspect.signature(function)
        parameters, found = self._signature.parameters, hints(function)
        if next(iter(parameters), "") in ("self", "cls"):
            raise CacheError(say("cache.method", function=function.__qualname__, name=next(iter(parameters))))
        self._asks = tuple(inspect.signature(who).parameters) if who else ()
        for name in self._asks:
            if name not in (known := [*parameters, "request"]):
                raise CacheError(say("cache.who_unknown", function=self._name, name=name, names=", ".join(known)))
        of = {kind: [name for name, p in parameters.items() if p.kind is kind] for kind in inspect._ParameterKind}
        only_place, either, self._rest, only_name, self._more = of.values()
        self._positional, self._by_name = only_place + either, frozenset(either + only_name)
        kept, self._defaults, injects = {}, {}, False
        for place, (name, p) in enumerate(parameters.items()):
            markers = _markers(p.default, found.get(name))
            tool = _names_tool(found.get(name))
            injects = injects or tool or bool(markers)
            missing = p.default is _EMPTY or bool(_markers(p.default, None))
            if not missing:
                self._defaults[name] = p.default
            asked = [m.dependency for m in markers if hasattr(m, "dependency")]
            left_out = tool or (asked and (name in self._asks or _gives_tool(asked[0])))
            if not left_out and name not in [*self._rest, *self._more]:
                default = (_INJECTED if markers else _EMPTY) if missing else p.default
                kept[name] = ("" if name in only_place else name, sys.maxsize if name in only_name else place, default)
        self._kept = tuple(kept.values())
        self.names = (*kept, *self._rest, *self._more, *(["who"] if who else []))
        # All arguments given by position and all of them in the key: the values are the arguments.
        self._as_is = len(kept) if len(kept) == len(parameters) == len(self._positional) and not who else -1
        self._sees_request, self._declared = False, set[str]()
        self._suspects: list[tuple[int, str]] = []
        if injects and who is None and not public:
            self._look_into(function)

    def values(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], request: Any = None) -> tuple[Any, ...]:
        """The values that make the key of a call. What is left out may be missing.

        Raises:
            TypeError: if the function cannot be called so.
            CacheError: if an argument that only FastAPI fills in, or one that ``who`` needs, is missing.
        """
        count = len(args)
        if not kwargs and count == self._as_is and not self._suspects:
            return args
        if "request" in self._asks and "request" in kwargs and "request" not in self._by_name:
            kwargs = dict(kwargs)
            request = kwargs.pop("request")
        over = count > len(self._positional) and not self._rest
        twice = kwargs and count and not kwargs.keys().isdisjoint(self._positional[:count])
        if over or twice or not (self._more or kwargs.keys() <= self._by_name):
            self._complain(args, kwargs)
        values = []
        for name, place, default in self._kept:
            value = args[place] if place < count else kwargs.get(name, default)
            if value is _EMPTY or value is _INJECTED:
                self._complain(args, kwargs)
            values.append(value)
        for index, name in self._suspects:
            if is_tool(type(values[index])):
                raise self._untold(name)
        if self._rest:
            values.append(args[len(self._positional) :])
        if self._more:
            values.append({name: value for name, value in kwargs.items() if name not in self._by_name})
        if self._who:
            values.append(self._asker(args, kwargs, request))
        return tuple(values)

    def bypasses(self, request: Any) -> bool:
        """Whether a request goes past the cache: the code sees it, and it tells more than the key does.

        That is who is asking, a body, or what is in the address and no parameter takes."""
        if not self._sees_request:
            return False
        told = {*request.path_params, *request.query_params}
        reads = request.scope.get("method") in ("GET", "HEAD")
        return not (reads and told <= self._declared and _TELLING.isdisjoint(request.headers))

    def _complain(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        bound = self._signature.bind_partial(*args, **kwargs).arguments
        for name, (_, _, default) in zip(self.names, self._kept, strict=False):
            if name not in bound and default is _INJECTED:
                raise CacheError(say("cache.argument_missing", function=self._name, name=name))
            if name not in bound and default is _EMPTY:
                raise TypeError(f"{self._name}() missing a required argument: {name!r}")

    def _untold(self, name: str) -> CacheError:
        return CacheError(say("cache.depends_on_who", function=self._name, name=name))

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
            whole = get_dependant(path="/", call=function)
        except (FastAPIError, AssertionError):  # no endpoint, then: FastAPI will not take it either
            return
        own = {field.alias for field in _inputs(whole)}
        todo = [(whole, "")]
        while todo:
            part, filled = todo.pop()  # with the parameter of the endpoint that it fills in
            todo += [(below, filled or below.name or "") for below in part.dependencies]
            self._declared.update(name for field in [*part.path_params, *part.query_params] for name in _names(field))
            headers = [name.lower().replace("_", "-") for field in part.header_params for name in _names(field)]
            telling = [name for name in headers if name in _TELLING]
            telling += [field.alias for field in part.cookie_params]
            if isinstance(part.call, SecurityBase):
                telling.append(type(part.call).__name__)
            others = [field.alias for field in _inputs(part) if filled and field.alias not in own]
            if others and filled in self.names:  # fine if it fills in a value, which only a call shows
                self._suspects.append((self.names.index(filled), others[0]))
            elif others:
                telling += others
            if telling:
                raise self._untold(telling[0])
            self._sees_request |= bool(part.request_param_name or part.http_connection_param_name)


def _inputs(part: Any) -> list[Any]:
    """What a dependency reads from a request, its own dependencies apart."""
    return [*part.path_params, *part.query_params, *part.header_params, *part.cookie_params, *part.body_params]


def _names(field: Any) -> list[str]:
    """What one parameter takes, or the fields of a model of several, as a request calls it."""
    inside = getattr(field.field_info.annotation, "model_fields", None)
    return [info.alias or name for name, info in inside.items()] if inside else [field.alias]


def _markers(default: Any, hint: Any) -> list[Any]:
    """What FastAPI reads beside a parameter: ``Depends``, ``Query`` and the like."""
    found = [default, *(get_args(hint)[1:] if get_origin(hint) is Annotated else ())]
    return [marker for marker in found if type(marker).__module__ == "fastapi.params"]


def _names_tool(hint: Any) -> bool:
    """Whether an annotation means a tool: itself, in ``Annotated`` or ``X | None``."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [get_origin(part) or part for part in parts if part is not NoneType]
    return bool(kinds) and all(map(is_tool, kinds))


def _gives_tool(dependency: Any) -> bool:
    """Whether a dependency returns or yields a tool, by its annotation."""
    if not inspect.isroutine(dependency):
        return _names_tool(dependency)
    gives = hints(dependency).get("return")
    yields = inspect.isgeneratorfunction(dependency) or inspect.isasyncgenfunction(dependency)
    return any(map(_names_tool, get_args(gives)[:1])) if yields else _names_tool(gives)
