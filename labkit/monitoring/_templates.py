"""The template of the route that answered a request, from what routing has left in its scope.

``/users/7`` and ``/users/8`` are one endpoint, ``/users/{user_id}``. With paths as labels every address that somebody
thinks of would make a time series.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

UNMATCHED = "unmatched"  # whatever no route answers: made-up paths, and redirects from a path with a slash too many
_REST = "/{path}"  # what a mount passes on
_NOTHING: Mapping[str, Any] = {}


class Templates:
    """Finds templates in one application.

    Args:
        app: its outermost layer, where the scope does not name an application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._plain: dict[str, str] = {}  # places of mounts without parameters: each is its own template

    def of(self, scope: MutableMapping[str, Any], root: Any = None) -> str:
        """The template of the route behind ``scope``, once routing is done with it; ``unmatched`` if there is none.

        Args:
            root: the application that is measured; a mounted one has put itself in the scope.
        """
        own = _own(scope)
        if "app_root_path" not in scope:  # no mount
            return own or UNMATCHED
        place = scope["root_path"][len(scope["app_root_path"]) :]
        return UNMATCHED if own is None else self._prefix(place, root) + own

    def _prefix(self, place: str, root: Any) -> str:
        """The template of the mounts that lead to ``place``."""
        found = self._plain.get(place)
        if found is None:
            found = _mounted(_routes(root or self._app), place + "/") or place
            if found == place:
                self._plain[place] = found
        return found


def _own(scope: MutableMapping[str, Any]) -> str | None:
    """The part of the template below all mounts."""
    route, endpoint = scope.get("route"), scope.get("endpoint")
    context = scope.get("fastapi", _NOTHING).get("effective_route_context")
    if context is not None:  # FastAPI's name for a route of an included router, its prefixes included
        if context.original_route is route:
            return context.path_format  # type: ignore[no-any-return]
        if getattr(context.original_route, "endpoint", None) is endpoint:
            return context.starlette_route.path_format  # type: ignore[no-any-return]
    if route is not None and getattr(route, "endpoint", None) is endpoint:
        return route.path_format  # type: ignore[no-any-return]
    return None


def _routes(app: Any) -> list[Any]:
    """The routes of an application below its layers."""
    while app is not None:
        if (found := getattr(app, "routes", None)) is not None:
            return list(found)
        app = getattr(app, "app", None)
    return []


def _mounts(routes: list[Any]) -> Iterator[Any]:
    for route in routes:
        if (contexts := getattr(route, "effective_route_contexts", None)) is not None:  # an included router
            yield from _mounts([each.starlette_route or each.original_route for each in contexts()])
        elif hasattr(route, "app") and not hasattr(route, "endpoint"):
            yield route


def _mounted(routes: list[Any], rest: str) -> str | None:
    """The templates of the mounts that match ``rest``, which ends with a slash, one after the other."""
    for mount in _mounts(routes):
        if not hasattr(mount, "path_regex"):  # a host
            if (deeper := _mounted(_routes(mount), rest)) is not None:
                return deeper
        elif (found := mount.path_regex.match(rest)) is not None:
            below, here = "/" + found["path"], mount.path_format.removesuffix(_REST)
            if below == "/":
                return here
            if (deeper := _mounted(_routes(mount), below)) is not None:
                return here + deeper
    return None
