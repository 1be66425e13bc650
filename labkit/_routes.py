"""Let a cell that runs again replace its endpoint, where FastAPI would go on answering with the first.

Routes are compared by what they answer to: kind, host, the shape of the path (``/users/{id}`` is the same
shape as ``/users/{user_id}``, ``/users/me`` is another) and the methods. The newest takes the place of the
one that it replaces, so that ``/users/me`` stays ahead of ``/users/{id}``. Middleware of the same name, added by
another run of a cell, is replaced in the same way; within one run, and outside of a notebook, layers add up.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from labkit._text import say

Routes = list[Any]

_PARAMETER = re.compile(r"\{[^}:]*(:[^}]*)?\}")
_ANY = frozenset({"*"})  # the methods of a route that does not distinguish them


@dataclass(frozen=True, eq=False)
class _Entry:
    """A route where it stands: in which list, and below which included routers, mounts and hosts."""

    route: Any
    siblings: Routes
    above: tuple[tuple[Routes, Any], ...]
    path: str
    host: str

    @property
    def key(self) -> tuple[bool, str, str]:
        return hasattr(self.route, "methods"), self.host, _PARAMETER.sub(r"{\1}", self.path)

    @property
    def methods(self) -> frozenset[str]:
        return frozenset(getattr(self.route, "methods", None) or _ANY)


class _Map:
    """Every route of an application, those of included routers, mounts and hosts too.

    Attributes:
        lists: the lists that routes stand in; one that is reached by two ways is there twice.
        owners: the application, included routers, mounts and hosts.
    """

    def __init__(self, app: Any) -> None:
        self.entries: list[_Entry] = []
        self.lists: list[Routes] = []
        self.owners: list[Any] = [app]
        routes = getattr(app, "routes", None)
        if isinstance(routes, list):
            self._visit(routes, "", "", ())

    def _visit(self, routes: Routes, path: str, host: str, above: tuple[tuple[Routes, Any], ...]) -> None:
        self.lists.append(routes)
        for route in routes:
            inner, below = None, path + getattr(route, "path", "")
            if (router := getattr(route, "original_router", None)) is not None:  # FastAPI >= 0.137
                inner, below = router.routes, path + getattr(route.include_context, "prefix", "")
            elif not hasattr(route, "endpoint"):
                inner = getattr(route, "routes", None) or []
            if inner is None:
                self.entries.append(_Entry(route, routes, above, below, host))
            elif isinstance(inner, list) and all(inner is not seen for seen, _ in above):
                self.owners.append(route)
                self._visit(inner, below, getattr(route, "host", host), (*above, (routes, route)))


class Keeper:
    """Keeps an application's routes free of what a newer declaration replaced.

    What stands there at the beginning is the application's own affair; only functions of a notebook or script
    (``__main__``) replace what came before them even then: a cell has run already, perhaps more than once.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self._known: dict[int, Any] = {}  # routes seen before; kept alive, so that no identity is used again
        self._lists: list[Routes] = []
        self._sizes: list[int] = []
        self._handlers = list(getattr(app, "exception_handlers", {}).values())
        self._add: Any = None
        self._layers: list[tuple[Any, int]] = []  # of middleware, each with the run of a cell that added it
        self._unlock()
        self._settle(first=True)

    def refresh(self) -> None:
        """Bring the routes up to date; about a microsecond when nothing was declared meanwhile."""
        if list(map(len, self._lists)) != self._sizes:
            self._settle()
        handlers = getattr(self.app, "exception_handlers", None)
        if handlers is not None and list(handlers.values()) != self._handlers:
            self._handlers = list(handlers.values())
            self.app.middleware_stack = None  # Starlette reads the handlers only when it builds this

    def _unlock(self) -> None:
        """Let ``app.add_middleware`` work after the start, where Starlette raises."""
        app = self.app
        if hasattr(app, "add_middleware") and hasattr(app, "middleware_stack"):
            add = app.add_middleware

            def add_middleware(*args: Any, **options: Any) -> None:
                app.middleware_stack = None
                add(*args, **options)
                self._settle_layer(app.user_middleware)

            self._add = app.add_middleware = add_middleware

    def _settle_layer(self, layers: list[Any]) -> None:
        """Put the newest layer in the place of one of its name that another run of a cell had added."""
        new, run = layers[0], _run()
        for old, before in self._layers:
            if before != run and old in layers and _name(old) == _name(new):
                layers.remove(new)
                layers[layers.index(old)] = new
                break
        self._layers.append((new, run))

    def close(self) -> None:
        """Give the application its own ``add_middleware`` back."""
        if self._add is not None and vars(self.app).get("add_middleware") is self._add:
            del self.app.add_middleware

    def _settle(self, first: bool = False) -> None:
        seen = _Map(self.app)
        fresh = [e for e in seen.entries if id(e.route) not in self._known and (_typed(e.route) or not first)]
        changed = False
        for new in reversed(fresh):  # of two that are new the later wins
            for old in seen.entries:
                if new.route in new.siblings and old.route in old.siblings and old.key == new.key:
                    changed |= self._replace(old, new, seen)
        if changed:
            _forget(seen.owners)
            seen = _Map(self.app)
        self._known = {id(entry.route): entry.route for entry in seen.entries}
        self._lists, self._sizes = seen.lists, list(map(len, seen.lists))

    def _replace(self, old: _Entry, new: _Entry, seen: _Map) -> bool:
        """Take away from ``old`` what ``new`` answers to; whether there was anything."""
        shared = old.methods & new.methods
        together = old.siblings is new.siblings
        if old.route is new.route or not shared:
            return False
        if together:
            if seen.entries.index(old) > seen.entries.index(new):
                return False
        elif id(old.route) not in self._known and _typed(old.route) >= _typed(new.route):
            return False  # both are new, in different routers: which is the newer cannot be told
        # Stand ahead of what is replaced, or of the router through which that is reached.
        way = next((owner for routes, owner in old.above if routes is new.siblings), None)
        anchor = old.route if together else way
        if anchor is not None:
            new.siblings.remove(new.route)
            new.siblings.insert(new.siblings.index(anchor), new.route)
        if left := old.methods - shared - {"HEAD"}:
            old.route.methods = set(left)
        elif sum(routes is old.siblings for routes in seen.lists) == 1 or together:
            old.siblings.remove(old.route)  # not from a router included twice: its other path goes on
        return True


def _typed(route: Any) -> bool:
    return getattr(getattr(route, "endpoint", None), "__module__", None) == "__main__"


def _run() -> int:
    """The number of the cell's run; 0 outside of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "execution_count", 0)


def _name(layer: Any) -> tuple[object, ...]:
    """What tells a middleware from others: its class and, of ``@app.middleware``, the function."""
    return tuple(
        (getattr(part, "__module__", ""), getattr(part, "__qualname__", part))
        for part in (layer.cls, layer.kwargs.get("dispatch"))
    )


def _frameworks(route: Any) -> bool:
    """Whether FastAPI added it on its own: ``/docs``, ``/openapi.json``."""
    module = getattr(getattr(route, "endpoint", None), "__module__", None) or ""
    return module.partition(".")[0] == "fastapi"


def _forget(owners: list[Any]) -> None:
    """Clear what FastAPI remembers of the former routes: compiled routers and the OpenAPI document."""
    for owner in owners:
        for app in (owner, getattr(owner, "app", None)):
            if app is not None and hasattr(app, "openapi_schema"):
                app.openapi_schema = None
            for router in (getattr(app, "router", None), getattr(app, "original_router", None)):
                if (mark := getattr(router, "_mark_routes_changed", None)) is not None:
                    mark()


def suggest(app: Any, path: str) -> str:
    """A sentence with the known paths nearest to one that is not known; empty if there is none."""
    own = (e for e in _Map(app).entries if hasattr(e.route, "methods") and not _frameworks(e.route))
    known = list(dict.fromkeys(e.path for e in own))
    near = get_close_matches(path, known, 3, 0.5) or known[:3]
    return say("core.unknown_path", path=path, known=", ".join(near)) if near else ""
