"""A cell that runs again replaces its endpoint, and nothing else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, PlainTextResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Host, Mount, Route

from labkit import _routes
from labkit._routes import Keeper, suggest
from labkit.asgi import call


def says(word: str, module: str = "__main__") -> Callable[[], Any]:
    async def endpoint() -> str:
        return word

    endpoint.__module__ = module
    return endpoint


def get(app: Any, path: str, method: str = "GET") -> Any:
    reply = asyncio.run(call(app, method, path))
    return reply.json if reply.status == 200 else reply.status


def test_a_new_declaration_replaces_the_old() -> None:
    app = FastAPI()
    app.get("/a")(says("old"))
    app.get("/users/{id}")(says("old"))
    keeper = Keeper(app)
    assert "old" in (get(app, "/a"), get(app, "/users/3"))
    app.get("/a")(says("new"))
    app.get("/users/{user_id}")(says("new"))
    keeper.refresh()
    assert get(app, "/a") == get(app, "/users/3") == "new"
    assert len([route for route in app.routes if getattr(route, "path", "") == "/a"]) == 1


def test_a_cell_may_have_run_twice_before_the_lab() -> None:
    app = FastAPI()
    for word in ("first", "second", "third"):
        app.get("/cell")(says(word))
        app.get("/module")(says(word, module="app.main"))
    Keeper(app)
    assert get(app, "/cell") == "third"
    assert get(app, "/module") == "first"  # an application's own business: this is what it does in production


def test_a_cell_may_have_replaced_an_endpoint_of_a_module_before_the_lab() -> None:
    app, router = FastAPI(), APIRouter()
    router.get("/included")(says("module", module="app.routers"))
    app.include_router(router)
    app.get("/own")(says("module", module="app.main"))
    for path in ("/included", "/own"):
        app.get(path)(says("cell"))
    Keeper(app)
    assert get(app, "/included") == get(app, "/own") == "cell"


def test_what_differs_stays() -> None:
    app = FastAPI()
    app.get("/users/me")(says("me"))
    app.get("/users/{id}")(says("one"))
    app.post("/users/{id}")(says("post"))
    app.get("/files/{path:path}")(says("file"))
    keeper = Keeper(app)
    app.put("/users/{id}")(says("put"))
    app.get("/files/{name}")(says("name"))
    app.get("/users/")(says("all"))
    keeper.refresh()
    assert [get(app, path) for path in ("/users/me", "/users/1", "/users/")] == ["me", "one", "all"]
    assert (get(app, "/users/1", "POST"), get(app, "/users/1", "PUT")) == ("post", "put")
    assert get(app, "/files/a/b") == "file"


def test_the_new_one_takes_the_old_ones_place() -> None:
    app = FastAPI()
    app.get("/users/me")(says("old me"))
    app.get("/users/{id}")(says("one"))
    keeper = Keeper(app)
    app.get("/users/me")(says("new me"))
    keeper.refresh()
    assert (get(app, "/users/me"), get(app, "/users/1")) == ("new me", "one")


def test_only_the_shared_methods_are_taken_away() -> None:
    app = FastAPI()
    app.api_route("/a", methods=["GET", "POST"])(says("both"))
    keeper = Keeper(app)
    app.get("/a")(says("new"))
    keeper.refresh()
    assert (get(app, "/a"), get(app, "/a", "POST")) == ("new", "both")


def test_no_method_is_left_of_a_route_that_answers_head_by_itself() -> None:
    app = FastAPI()
    app.add_route("/a", lambda request: PlainTextResponse('"old"'))  # GET and, by Starlette's rule, HEAD
    keeper = Keeper(app)
    app.get("/a")(says("new"))
    keeper.refresh()
    assert get(app, "/a") == "new" and get(app, "/a", "HEAD") == 405


def nested() -> tuple[FastAPI, APIRouter, APIRouter]:
    inner, outer, app = APIRouter(prefix="/inner"), APIRouter(), FastAPI()
    inner.get("/a")(says("old"))
    outer.include_router(inner, prefix="/outer")
    app.include_router(outer, prefix="/v1")
    app.get("/last/{id}")(says("last"))
    return app, outer, inner


def test_included_routers_are_live() -> None:
    app, outer, inner = nested()
    keeper = Keeper(app)
    assert get(app, "/v1/outer/inner/a") == "old"
    inner.get("/a")(says("new"))
    keeper.refresh()
    assert get(app, "/v1/outer/inner/a") == "new"
    inner.get("/a")(says("newest"))
    assert get(app, "/v1/outer/inner/a") == "new"  # now FastAPI remembers both
    keeper.refresh()
    assert get(app, "/v1/outer/inner/a") == "newest"
    outer.get("/b")(says("b"))
    keeper.refresh()
    outer.get("/b")(says("b again"))
    keeper.refresh()
    assert get(app, "/v1/b") == "b again"


def test_a_declaration_on_the_application_replaces_one_of_a_router() -> None:
    app, _, inner = nested()
    keeper = Keeper(app)
    app.get("/v1/outer/inner/a")(says("from the app"))
    keeper.refresh()
    assert get(app, "/v1/outer/inner/a") == "from the app" and not inner.routes
    inner.get("/a")(says("from the router"))
    keeper.refresh()
    assert get(app, "/v1/outer/inner/a") == "from the router"


def test_a_router_included_twice_keeps_its_other_path() -> None:
    router, app = APIRouter(), FastAPI()
    router.get("/a")(says("shared"))
    app.include_router(router, prefix="/v1")
    app.include_router(router, prefix="/v2")
    keeper = Keeper(app)
    app.get("/v1/a")(says("mine"))
    keeper.refresh()
    assert (get(app, "/v1/a"), get(app, "/v2/a")) == ("mine", "shared")


def test_mounts_and_empty_routers_are_seen() -> None:
    app, sub, router = FastAPI(), FastAPI(), APIRouter()
    app.mount("/sub", sub)
    app.include_router(router, prefix="/r")
    keeper = Keeper(app)
    for target in (sub, router):
        target.get("/a")(says("old"))
    keeper.refresh()
    for target in (sub, router):
        target.get("/a")(says("new"))
    keeper.refresh()
    assert get(app, "/sub/a") == get(app, "/r/a") == "new"
    app.get("/sub/a")(says("above"))
    keeper.refresh()
    assert get(app, "/sub/a") == "above"


def test_hosts_and_websockets_are_something_else() -> None:
    one, two = FastAPI(), FastAPI()
    one.get("/a")(says("one"))
    two.get("/a")(says("two"))
    app = FastAPI(routes=[Host("one.example", one), Host("two.example", two)])

    @app.websocket("/a")
    async def socket(socket: WebSocket) -> None: ...

    keeper = Keeper(app)
    app.get("/a")(says("any"))
    keeper.refresh()
    replies = [asyncio.run(call(app, "GET", "/a", headers={"host": f"{n}.example"})).json for n in ("one", "two")]
    assert replies == ["one", "two"] and get(app, "/a") == "any"


def test_plain_starlette_and_bare_callables_work() -> None:
    def route(word: str) -> Route:
        async def endpoint(request: Request) -> PlainTextResponse:
            return PlainTextResponse(f'"{word}"')

        return Route("/a", endpoint)

    app = Starlette(routes=[route("old"), Mount("/m", routes=[route("inner")])])
    keeper = Keeper(app)
    app.routes.append(route("new"))
    keeper.refresh()
    assert (get(app, "/a"), get(app, "/m/a")) == ("new", "inner")

    async def bare(scope: Any, receive: Any, send: Any) -> None: ...

    Keeper(bare).refresh()
    assert suggest(bare, "/x") == ""


def test_the_documentation_follows() -> None:
    app = FastAPI()
    app.get("/a", summary="old")(says("old"))
    keeper = Keeper(app)
    assert app.openapi()["paths"]["/a"]["get"]["summary"] == "old"
    app.get("/a", summary="new")(says("new"))
    keeper.refresh()
    assert app.openapi()["paths"]["/a"]["get"]["summary"] == "new"


def test_middleware_and_handlers_may_come_after_the_start() -> None:
    app = FastAPI()

    async def fails() -> None:
        raise LookupError("x")

    app.get("/fails")(fails)
    keeper = Keeper(app)
    assert get(app, "/fails") == 500

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse("handled")

    app.add_exception_handler(LookupError, handle)
    keeper.refresh()
    assert get(app, "/fails") == "handled"

    @app.middleware("http")
    async def mark(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-mark"] = "1"
        return response

    keeper.refresh()
    assert asyncio.run(call(app, "GET", "/fails")).headers["x-mark"] == "1"
    keeper.close()
    with pytest.raises(RuntimeError, match="after an application has started"):
        app.add_middleware(type(mark))  # type: ignore[arg-type]


def test_middleware_of_a_cell_that_runs_again_takes_the_former_ones_place(monkeypatch: pytest.MonkeyPatch) -> None:
    app, seen = FastAPI(), list[str]()
    app.get("/a")(says("a"))
    keeper = Keeper(app)

    def layer(word: str) -> None:
        @app.middleware("http")
        async def mark(request: Request, call_next: Any) -> Any:
            seen.append(word)
            return await call_next(request)

    class Pure:
        def __init__(self, app: Any, word: str) -> None:
            self.app, self.word = app, word

        async def __call__(self, *arguments: Any) -> None:
            seen.append(self.word)
            await self.app(*arguments)

    def after(run: int, *words: str) -> list[str]:
        monkeypatch.setattr(_routes, "_run", lambda: run)
        for word in words:
            app.add_middleware(Pure, word=word) if word.startswith("pure") else layer(word)
        seen.clear()
        get(app, "/a")
        return seen

    assert after(1, "mark", "mark too") == ["mark too", "mark"], "one run may add several"
    assert after(2, "pure") == ["pure", "mark too", "mark"]
    assert after(3, "new", "newer") == ["pure", "newer", "new"]
    assert after(4, "pure again") == ["pure again", "newer", "new"]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "IPython", None)
    assert _routes._run() == 0, "no notebook, no cell that runs again"
    keeper.close()


def test_only_what_the_application_declares_itself_is_suggested() -> None:
    app = FastAPI()
    app.get("/dogs")(says("dogs"))
    assert "/dogs" in suggest(app, "/docs") and "openapi" not in suggest(app, "/docs")
    assert suggest(FastAPI(), "/docs") == ""


def test_nothing_happens_when_nothing_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    app, _, inner = nested()
    keeper = Keeper(app)
    get(app, "/v1/outer/inner/a")
    stack, version = app.middleware_stack, app.router._get_routes_version()  # type: ignore[attr-defined]
    looks: list[bool] = []
    monkeypatch.setattr(keeper, "_settle", lambda: looks.append(True))
    for _ in range(3):
        keeper.refresh()
    assert not looks and app.middleware_stack is stack
    assert app.router._get_routes_version() == version  # type: ignore[attr-defined]
    inner.get("/b")(says("b"))
    keeper.refresh()
    assert looks


PATHS = ("/a", "/a/{x}", "/a/{y}", "/a/me", "/{x}/a", "/b/{p:path}")


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(["GET", "POST"]), st.booleans()), max_size=12))
def test_the_last_declaration_of_each_shape_is_the_one_that_is_left(
    steps: list[tuple[str, str, bool]],
) -> None:
    app, router = FastAPI(openapi_url=None), APIRouter()
    app.include_router(router)
    keeper = Keeper(app)
    newest: dict[tuple[str, str], int] = {}
    for number, (path, method, in_router) in enumerate(steps):
        target: Any = router if in_router else app
        target.api_route(path, methods=[method])(says(str(number)))
        newest[path.replace("{y}", "{x}"), method] = number
        keeper.refresh()
    left = {asyncio.run(route.endpoint()) for route in [*app.routes, *router.routes] if hasattr(route, "endpoint")}
    assert left == {str(number) for number in newest.values()}
