"""Which endpoint a request is counted under: the route's template, whatever the way to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles

from labkit.monitoring import Metrics, MetricsMiddleware
from tests.measured import asked, counted, total


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def opaque(scope: Any, receive: Any, send: Any) -> None:
    """An application without routes."""
    await PlainTextResponse("opaque")(scope, receive, send)


def a_router(name: str = "id") -> APIRouter:
    router = APIRouter()

    @router.get(f"/{{{name}}}")
    async def one() -> str:
        return "one"

    return router


def sub_application(prefix: str = "") -> FastAPI:
    app = FastAPI()

    @app.get(prefix + "/items/{item}")
    async def item() -> str:
        return "item"

    @app.get(prefix + "/items")
    async def items() -> str:
        return "items"

    return app


class Page(HTTPEndpoint):
    async def get(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("page")


def everything() -> FastAPI:
    app = FastAPI(openapi_url=None)

    @app.get("/")
    async def root() -> str:
        return "root"

    @app.get("/users/{user_id:int}/files/{path:path}")
    @app.get("/users/{user_id}")
    async def user() -> str:
        return "user"

    app.add_route("/plain/{word}", hello)
    app.add_route("/other", hello)
    app.add_route("/page/{number:int}", Page)  # type: ignore[arg-type]

    inner, outer = a_router(), APIRouter()
    outer.include_router(inner, prefix="/inner/{b}")
    outer.add_route("/plain/{x}", hello)
    outer.mount("/mounted/{m}", sub_application())
    app.include_router(outer, prefix="/outer/{a}")
    app.include_router(inner, prefix="/again")

    twice = sub_application()
    app.mount("/first", twice)
    app.mount("/second/{tenant}", twice)
    app.mount("/opaque/{name}", opaque)
    app.mount("/deep/{one}", Router(routes=[Mount("/{two:int}", app=GZipMiddleware(sub_application("/x")))]))
    app.mount("/starlette", Starlette(routes=[Route("/{a}/{b}", hello), Mount("/more", routes=[Route("/{c}", hello)])]))
    app.router.routes.append(Host("{shop}.example.org", app=sub_application("/shop")))
    return app


CASES = [
    ("/", 200, "/"),
    ("/users/7", 200, "/users/{user_id}"),
    ("/users/7/files/a/b/c.txt", 200, "/users/{user_id}/files/{path}"),
    ("/plain/abc", 200, "/plain/{word}"),
    ("/other", 200, "/other"),
    ("/page/3", 200, "/page/{number}"),
    ("/outer/1/inner/2/3", 200, "/outer/{a}/inner/{b}/{id}"),
    ("/again/9", 200, "/again/{id}"),
    ("/outer/1/plain/7", 200, "/outer/{a}/plain/{x}"),
    ("/outer/1/mounted/7/items/4", 200, "/outer/{a}/mounted/{m}/items/{item}"),
    ("/outer/1/mounted/7/nothing", 404, "unmatched"),
    ("/first/items", 200, "/first/items"),
    ("/first/items/1", 200, "/first/items/{item}"),
    ("/second/acme/items/1", 200, "/second/{tenant}/items/{item}"),
    ("/second/first/items", 200, "/second/{tenant}/items"),
    ("/first/nothing", 404, "unmatched"),
    ("/second/acme/nothing", 404, "unmatched"),
    ("/first/items/", 307, "unmatched"),
    ("/opaque/a/b/c", 200, "/opaque/{name}/{path}"),
    ("/deep/1/2/x/items/9", 200, "/deep/{one}/{two}/x/items/{item}"),
    ("/deep/1/2/nothing", 404, "unmatched"),
    ("/deep/1/nothing", 404, "unmatched"),
    ("/starlette/1/2", 200, "/starlette/{a}/{b}"),
    ("/starlette/more/2", 200, "/starlette/{a}/{b}"),
    ("/starlette/more/", 404, "unmatched"),
    ("/nothing", 404, "unmatched"),
    ("/users/7/", 307, "unmatched"),
]


def added(app: Any, metrics: Metrics) -> Any:
    app.add_middleware(MetricsMiddleware, metrics=metrics)
    return app


def around(app: Any, metrics: Metrics) -> Any:
    return GZipMiddleware(MetricsMiddleware(GZipMiddleware(app), metrics=metrics))


@pytest.mark.parametrize("layer", [added, around])
def test_the_endpoint_is_the_template_whatever_the_way_to_it(layer: Callable[[Any, Metrics], Any]) -> None:
    metrics = Metrics()
    app = layer(everything(), metrics)
    for path, status, endpoint in CASES * 2:  # the second time by heart
        before = counted(metrics)
        answer = asked(app, path)
        assert (answer.status, counted(metrics) - before) == (status, {("GET", endpoint, status): 1}), path


def test_a_host_is_no_part_of_the_endpoint() -> None:
    metrics, starlettes = Metrics(), Metrics()
    shops = added(everything(), metrics)
    pages = added(Starlette(routes=[Host("{any}.org", app=Router([Route("/x/{y}", hello)]))]), starlettes)
    for name in ("a", "b"):
        shop, page = [(b"host", f"{name}.example.org".encode())], [(b"host", f"{name}.org".encode())]
        assert asked(shops, "/shop/items/1", headers=shop).status == 200
        assert asked(shops, "/shop/nothing", headers=shop).status == 404
        assert asked(pages, "/x/1", headers=page).status == 200
        assert asked(pages, "/y", headers=page).status == 404
    assert counted(metrics) == {("GET", "/shop/items/{item}", 200): 2, ("GET", "unmatched", 404): 2}
    assert counted(starlettes) == {("GET", "/x/{y}", 200): 2, ("GET", "unmatched", 404): 2}


def test_files_are_one_endpoint(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "index.html"):
        (tmp_path / name).write_text(name)
    for make in (FastAPI, Starlette):
        metrics = Metrics()
        app = added(make(), metrics)
        app.mount("/files", StaticFiles(directory=tmp_path))
        for path in ("/files/a.txt", "/files/b.txt", "/files/c.txt", "/files/d.txt"):
            asked(app, path)
        assert counted(metrics) == {("GET", "/files/{path}", 200): 2, ("GET", "/files/{path}", 404): 2}


@pytest.mark.skipif(not hasattr(FastAPI, "frontend"), reason="this FastAPI has no frontends")
def test_a_frontend_is_one_endpoint(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    for name in ("index.html", "404.html", "assets/a.js"):
        (tmp_path / name).write_text(name)
    metrics, router = Metrics(), APIRouter()
    app = added(FastAPI(openapi_url=None), metrics)
    app.get("/api/{n}")(lambda n: n)
    router.frontend("/shop", directory=tmp_path)
    app.include_router(router, prefix="/v1")
    app.frontend("/", directory=tmp_path)
    for path in ("/", "/assets/a.js", "/nothing", "/v1/shop/", "/v1/shop/assets/a.js", "/v1/shop/x/y", "/api/1"):
        asked(app, path)
    assert {(endpoint, status): n for (_, endpoint, status), n in counted(metrics).items()} == {
        ("/{path}", 200): 2,
        ("/{path}", 404): 1,
        ("/v1/shop/{path}", 200): 2,
        ("/v1/shop/{path}", 404): 1,
        ("/api/{n}", 200): 1,
    }


def test_a_proxy_s_prefix_is_no_part_of_the_endpoint() -> None:
    metrics = Metrics()
    app = added(everything(), metrics)
    for path in (
        "/proxy/first/items/1",
        "/proxy/users/7",
        "/users/7",
        "/proxy/plain/x",
        "/plain/x",
        "/proxy/second/a/items",
    ):
        assert asked(app, path, root_path="/proxy").status == 200
    assert {endpoint for _, endpoint, _ in counted(metrics)} == {
        "/first/items/{item}",
        "/users/{user_id}",
        "/plain/{word}",
        "/second/{tenant}/items",
    }


def test_a_method_that_a_route_does_not_have_is_the_route_s_405() -> None:
    metrics = Metrics()
    app = added(everything(), metrics)
    for path in ("/users/7", "/plain/x", "/outer/1/inner/2/3", "/first/items/1", "/outer/1/plain/7"):
        assert asked(app, path, "DELETE").status == 405
    assert counted(metrics) == {
        ("DELETE", "/users/{user_id}", 405): 1,
        ("DELETE", "/plain/{word}", 405): 1,
        ("DELETE", "/outer/{a}/inner/{b}/{id}", 405): 1,
        ("DELETE", "/first/items/{item}", 405): 1,
        ("DELETE", "/outer/{a}/plain/{x}", 405): 1,
    }


def test_head_is_a_method_and_has_no_bytes() -> None:
    metrics = Metrics()
    app = added(everything(), metrics)
    assert asked(app, "/plain/x", "HEAD").status == 200
    assert asked(app, "/users/7", "HEAD").status == 405
    assert counted(metrics) == {("HEAD", "/plain/{word}", 200): 1, ("HEAD", "/users/{user_id}", 405): 1}
    assert total(metrics, "app_response_bytes_total") == 0


def test_a_measured_application_inside_of_another_has_its_whole_template() -> None:
    metrics, outer = Metrics(), Metrics()
    app = FastAPI()
    app.mount("/api/{v}", MetricsMiddleware(sub_application(), metrics=metrics))
    app.mount("/bare", MetricsMiddleware(Router([Route("/x/{y}", hello)]), metrics=metrics))
    whole = MetricsMiddleware(app, metrics=outer)
    for path in ("/api/1/items/2", "/bare/x/1", "/bare/nothing"):
        asked(whole, path)
    expected = {("GET", "/api/{v}/items/{item}", 200): 1, ("GET", "/bare/x/{y}", 200): 1, ("GET", "unmatched", 404): 1}
    assert counted(metrics) == counted(outer) == expected


def test_what_hides_its_routes_is_known_by_what_the_scope_says() -> None:
    inner = sub_application()

    async def hides(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)

    metrics = Metrics()
    app = added(FastAPI(), metrics)
    app.mount("/hidden/{x}", hides)
    asked(app, "/hidden/1/items/5")
    asked(app, "/hidden/2/items/6")
    assert counted(metrics) == {("GET", "/items/{item}", 200): 2}


def test_a_route_that_is_declared_later_is_found() -> None:
    metrics = Metrics()
    app = added(FastAPI(openapi_url=None), metrics)
    app.add_route("/a/{x}", hello)
    sub = FastAPI()
    app.mount("/sub", sub)
    for path in ("/a/1", "/b/1", "/sub/late/1"):
        asked(app, path)
    app.add_route("/b/{y}", hello)
    sub.get("/late/{z}")(lambda z: z)
    app.router.routes[:] = sorted(app.router.routes, key=lambda route: isinstance(route, Mount))
    for path in ("/a/1", "/b/1", "/sub/late/1"):
        asked(app, path)
    assert counted(metrics) == {
        ("GET", "/a/{x}", 200): 2,
        ("GET", "/b/{y}", 200): 1,
        ("GET", "/sub/late/{z}", 200): 1,
        ("GET", "unmatched", 404): 2,
    }


def test_nothing_is_matched_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Routing looks at as many routes with the layer as without it."""
    looks: list[str] = []
    for kind in (APIRoute, Route, Mount):
        plain = kind.matches

        def matches(self: Any, scope: Any, plain: Any = plain) -> Any:
            looks.append(self.path)
            return plain(self, scope)

        monkeypatch.setattr(kind, "matches", matches)
    bare, layered = everything(), added(everything(), Metrics())
    for path, *_ in CASES:
        asked(bare, path)
        without, looks[:] = list(looks), []
        asked(layered, path)
        assert looks == without
        looks.clear()


def test_a_layer_of_what_is_mounted_knows_an_endpoint_with_several_places() -> None:
    inner, outer = Metrics(), Metrics()
    app, shop = Starlette(), FastAPI(openapi_url=None)
    shop.router.routes += [Route("/a", hello), Route("/b", hello), Mount("/in", routes=[Route("/a", hello)])]
    shop.add_middleware(MetricsMiddleware, metrics=inner)
    app.mount("/shop", shop)
    app.add_middleware(MetricsMiddleware, metrics=outer)
    asked(app, "/shop/b")
    assert set(counted(inner)) == {("GET", "/b", 200)}
    assert set(counted(outer)) == {("GET", "/shop/b", 200)}
