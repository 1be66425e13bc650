"""Let a cell that runs again replace its endpoint, where FastAPI would go on answering with the first.

Routes are compared by what they answer to: kind, host, the shape of the path (``/users/{id}`` and
``/users/{user_id}`` are one shape, ``/users/me`` is another) and the methods. The newest keeps the place of the one
that it replaces, so that ``/users/me`` stays ahead of ``/users/{id}``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from labkit._text import say

_PARAMETER = re.compile(r"\{[^}:]*(:[^}]*)?\}")
_ANY = frozenset({"*"})  # the methods of a route that does not distinguish them


@dataclass(frozen=True, eq=False)
class _Entry:
    """A route where it stands."""

    route: Any
    siblings: list[Any]  # the list it stands in
    above: tuple[
        tuple[list[Any], Any], ...
    ]  # (list, included router or mount) from the application down to it
    key: tuple[str, str, str]  # kind, host, shape of the full path

    @property
    def methods(self) -> frozenset[str]:
        return frozenset(getattr(self.route, "methods", None) or _ANY)


def _shape(path: str) -> str:
    return _PARAMETER.sub(lambda match: f"{{{match[1] or ''}}}", path)


def _walk(
    routes: list[Any], prefix: str = "", host: str = "", above: tuple[tuple[list[Any], Any], ...] = ()
) -> Iterator[_Entry]:
    """Every route below ``routes``: included routers (FastAPI >= 0.137 keeps them live), mounts and hosts too."""
    for route in list(routes):
        inner, path, name = None, prefix + getattr(route, "path", ""), host
        if (router := getattr(route, "original_router", None)) is not None:
            inner, path = router.routes, prefix + getattr(route.include_context, "prefix", "")
        elif not hasattr(route, "endpoint"):
            inner, name = getattr(route, "routes", None) or [], getattr(route, "host", host)
        if inner is None:
            kind = "http" if hasattr(route, "methods") else "websocket"
            yield _Entry(route, routes, above, (kind, host, _shape(path)))
        elif all(inner is not seen for seen, _ in above):
            yield from _walk(inner, path, name, (*above, (routes, route)))


class Keeper:
    """Keeps one application's routes free of what a newer declaration replaced.

    What stood there when the Lab began is the application's own affair, except for functions of a notebook or
    script (``__main__``) declared twice in one router: a cell had already run again.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._known: dict[
            int, Any
        ] = {}  # routes seen before, by identity; kept alive so that no id is reused
        self._lists: list[list[Any]] = []
        self._sizes: list[int] = []
        self._handlers: list[Any] = []
        self._open()
        self._settle(first=True)

    def refresh(self) -> None:
        """Bring the routes up to date; about a microsecond when nothing was declared since."""
        if [len(routes) for routes in self._lists] != self._sizes:
            self._settle()
        handlers = getattr(self.app, "exception_handlers", None)
        if handlers is not None and list(handlers.values()) != self._handlers:
            self._handlers = list(handlers.values())
            self.app.middleware_stack = None  # Starlette reads the handlers only when it builds this

    def _open(self) -> None:
        """Let ``app.add_middleware`` work after the start, where Starlette raises."""
        if not hasattr(self.app, "add_middleware") or not hasattr(self.app, "middleware_stack"):
            return
        app, add = self.app, self.app.add_middleware

        def add_middleware(*args: Any, **options: Any) -> None:
            app.middleware_stack = None
            add(*args, **options)

        app.add_middleware = add_middleware
        self._handlers = list(getattr(app, "exception_handlers", {}).values())

    def close(self) -> None:
        """Give the application back its own ``add_middleware``."""
        vars(self.app).pop("add_middleware", None) if hasattr(self.app, "__dict__") else None

    def _settle(self, first: bool = False) -> None:
        routes = getattr(self.app, "routes", None)
        if not isinstance(routes, list):
            return
        entries = list(_walk(routes))
        fresh = [e for e in entries if (not first or _typed_in(e.route)) and id(e.route) not in self._known]
        changed = False
        for new in reversed(fresh):  # the last one first: of two that are new the later wins
            if new.route in new.siblings:
                for old in entries:
                    changed |= old.route in old.siblings and self._replace(old, new, first)
        entries = list(_walk(routes))
        self._known = {id(e.route): e.route for e in entries}
        self._lists = [routes, *_lists_below(routes)]
        self._sizes = [len(one) for one in self._lists]
        if changed:
            self._forget(entries)

    def _replace(self, old: _Entry, new: _Entry, first: bool) -> bool:
        """Take away from ``old`` what ``new`` answers to; whether there was anything."""
        if old.route is new.route or old.key != new.key or not (shared := old.methods & new.methods):
            return False
        together = old.siblings is new.siblings
        if first and not (together and _typed_in(old.route)):
            return False
        if together and old.siblings.index(old.route) > new.siblings.index(new.route):
            return False
        if not together and id(old.route) not in self._known:
            return False  # both are new, in different routers: which is newer cannot be told
        # Ahead of what it replaces, or of the router through which that is reached.
        anchor = next((entry for routes, entry in old.above if routes is new.siblings), None)
        anchor = old.route if together else anchor
        if anchor is not None and new.siblings.index(anchor) < new.siblings.index(new.route):
            new.siblings.remove(new.route)
            new.siblings.insert(new.siblings.index(anchor), new.route)
        if left := old.methods - shared - {"HEAD"}:
            old.route.methods = set(left)
        elif together or not self._shared(old.siblings):
            old.siblings.remove(old.route)
        return True

    def _shared(self, siblings: list[Any]) -> bool:
        """Whether these routes are reached by more than one way (a router included twice)."""
        return sum(e.siblings is siblings and e.route is siblings[0] for e in _walk(self.app.routes)) > 1

    def _forget(self, entries: list[_Entry]) -> None:
        """Clear what FastAPI remembers of the old routes: compiled routers and the OpenAPI document."""
        owners = [self.app, *(owner for entry in entries for _, owner in entry.above)]
        for owner in {id(owner): owner for owner in owners}.values():
            inner = getattr(owner, "app", None)
            for one in (owner, inner, *(getattr(x, "router", None) for x in (owner, inner))):
                if hasattr(one, "openapi_schema"):
                    one.openapi_schema = None
            for router in (getattr(owner, "original_router", None), getattr(owner, "router", None)):
                if hasattr(router, "_mark_routes_changed"):
                    router._mark_routes_changed()


def _typed_in(route: Any) -> bool:
    return getattr(getattr(route, "endpoint", None), "__module__", None) == "__main__"


def _lists_below(routes: list[Any]) -> list[list[Any]]:
    """The lists of included routers and mounts, empty ones included, each once."""
    found: dict[int, list[Any]] = {}
    todo = [routes]
    while todo:
        for route in todo.pop():
            router = getattr(route, "original_router", None)
            inner = router.routes if router is not None else getattr(route, "routes", None)
            if isinstance(inner, list) and id(inner) not in found:
                found[id(inner)] = inner
                todo.append(inner)
    return list(found.values())


def paths(app: Any) -> list[str]:
    """The paths that an application answers to over HTTP, parameters as they are written."""
    routes = getattr(app, "routes", None)
    if not isinstance(routes, list):
        return []
    found = []
    for entry in _walk(routes):
        if entry.key[0] == "http":
            prefix = "".join(
                getattr(getattr(owner, "include_context", owner), "prefix", getattr(owner, "path", ""))
                for _, owner in entry.above
            )
            found.append(prefix + entry.route.path)
    return list(dict.fromkeys(found))


def suggest(app: Any, path: str) -> str:
    """A sentence with the known paths nearest to one that is not known; empty if there is none."""
    known = paths(app)
    near = get_close_matches(path, known, 3, 0.5) or known[:3]
    return say("core.unknown_path", path=path, known=", ".join(near)) if near else ""
