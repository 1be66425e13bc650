"""The template of the route that answered a request, from what routing has left in its scope.

``/users/7`` and ``/users/8`` are one endpoint, ``/users/{user_id}``. With paths as labels every address that somebody
thinks of would make a time series.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

UNMATCHED = "unmatched"  # what no route answers: addresses that do not exist, redirects from one with a slash too many
_REST = "/{path}"  # what a mount hands on to an application without routes
MOST = 10_000  # things remembered, far more than any application has routes
_NOTHING: Mapping[str, Any] = {}

Place = tuple[str, str]  # the template, and a pattern of the paths that it stands for
_name = re.compile(r"\?P<\w+>")


class Templates:
    """Finds the templates of one application. Nothing is matched a second time, but where a thing has several places.

    Args:
        app: where to look for routes if the scope names no application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._places: dict[int, tuple[Any, list[Place]]] = {}  # by identity: routes are not hashable
        self._size = 0

    def of(self, scope: Mapping[str, Any], root: Any = None) -> str:
        """The template of what has answered, mounts included; ``unmatched`` if no route has.

        Args:
            scope: of a request, after routing.
            root: the application in which the mounts are; they replace it in the scope by the one that they lead to.
        """
        endpoint, thing = scope.get("endpoint"), answered_by(scope)
        if thing is None:
            thing = endpoint
        elif "app_root_path" not in scope:  # no mount on the way
            return thing.path_format  # type: ignore[no-any-return]
        if endpoint is None:
            return _frontend(scope)
        places = self._known(thing, root)
        if len(places) > 1:
            # As this path is seen from outside of the mounts or, by a layer of what is mounted, from inside.
            inside = scope["path"].removeprefix(scope.get("root_path", ""))
            matches = ([place for place in places if re.fullmatch(place[1], each)] for each in (_path(scope), inside))
            places = next(filter(None, matches), [])
        return places[0][0] if places else getattr(thing, "path_format", UNMATCHED)

    def _known(self, thing: Any, root: Any) -> list[Place]:
        """Where a route, an endpoint or a mounted application stands."""
        routes = _routes(root or self._app) or ()
        if len(routes) != self._size or len(self._places) > MOST:  # something was declared meanwhile
            self._size = len(routes)
            self._places.clear()
        known = self._places.get(id(thing))
        if known is None or known[0] is not thing:
            places = [place for each, place in _walk(routes) if each is thing]
            known = self._places[id(thing)] = thing, list(dict.fromkeys(places))
        return known[1]


def answered_by(scope: Mapping[str, Any]) -> Any:
    """The route that has answered, or what FastAPI knows of one in an included router, its prefixes included.

    None where the scope has no more than an endpoint: FastAPI does not name Starlette's own routes, nor mounts.
    """
    route = scope.get("route")
    context = scope.get("fastapi", _NOTHING).get("effective_route_context")
    if context is not None and context.original_route is route:
        return context
    return route if route is not None and getattr(route, "endpoint", None) is scope.get("endpoint") else None


def _frontend(scope: Mapping[str, Any]) -> str:
    """FastAPI's ``app.frontend("/shop", directory)`` is no route; it says what follows its path."""
    rest = scope.get("fastapi", _NOTHING).get("frontend_path")
    return UNMATCHED if rest is None else _path(scope).removesuffix(rest).rstrip("/") + _REST


def _path(scope: Mapping[str, Any]) -> str:
    """The path without what a proxy has put before it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("app_root_path", scope.get("root_path", "")))


def _routes(app: Any) -> Sequence[Any] | None:
    """The routes of an application, whatever layers are around it; None if it has none."""
    while app is not None:
        if (found := getattr(app, "routes", None)) is not None:
            return found  # type: ignore[no-any-return]
        app = getattr(app, "app", None)
    return None


def _walk(routes: Sequence[Any] | None, template: str = "", pattern: str = "") -> Iterator[tuple[Any, Place]]:
    """Everything that a scope may name after routing, with its places, those that are looked at first ahead."""
    for route in routes or ():
        if (contexts := getattr(route, "effective_route_contexts", None)) is not None:  # an included router
            for context in contexts():
                yield from _walk([context.starlette_route or context], template, pattern)
        elif getattr(route, "path_regex", None) is None:  # a host, which is no part of the path
            yield from _walk(_routes(getattr(route, "app", None)), template, pattern)
        else:
            own = _name.sub("?:", route.path_regex.pattern.removeprefix("^").removesuffix("$"))
            place = template + route.path_format, pattern + own
            if hasattr(route, "endpoint"):
                yield route, place
                yield route.endpoint, place
            elif (inner := _routes(route.app)) is None:
                yield route.app, place
            else:
                yield route.app, (UNMATCHED, pattern + own)
                yield from _walk(inner, place[0].removesuffix(_REST), place[1].removesuffix("/(?:.*)"))
