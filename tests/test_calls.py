"""Profiles of endpoints: exact counts, whoever else is at work."""

from __future__ import annotations

import asyncio
import contextlib
import cProfile
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any

import anyio
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import StreamingResponse
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from labkit import plots, settings
from labkit.errors import MeasurementError
from labkit.profiling._tree import AWAIT, Pictured, finding
from labkit.profiling.calls import Profile, profile_async, profile_endpoint

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def client(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


def calls_of(profile: Profile, name: str) -> int:
    return sum(one.calls for one in profile.functions if one.name.split(".")[-1] == name)


def work() -> int:
    return 1


def other_work() -> int:
    return 2


def spin(times: int) -> int:
    return sum(work() for _ in range(times))


async def nap() -> None:
    await asyncio.sleep(0)


async def test_plain_and_async_endpoints_keep_injection() -> None:
    app = FastAPI()
    profiles: list[Profile] = []

    @app.get("/plain/{n}")
    @profile_endpoint(on_report=profiles.append)
    def plain(n: int, extra: Annotated[int, Depends(work)]) -> int:
        return spin(n) + extra

    @app.get("/async/{n}")
    @profile_endpoint
    async def later(n: int, q: int = 7) -> int:
        await nap()
        return spin(n) + q

    async with client(app) as http:
        assert (await http.get("/plain/5")).json() == 6
        assert (await http.get("/async/5", params={"q": 1})).json() == 6
        assert (await http.get("/async/x")).status_code == 422
    assert calls_of(profiles[0], "work") == calls_of(later.last, "work") == 5
    assert later.last.label == "later" and later.last.complete


async def test_works_above_and_below_other_decorators() -> None:
    app, seen = FastAPI(), list[str]()

    def noted(func: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(func)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            seen.append(func.__name__)
            return await func(*args, **kwargs)

        return wrapper

    def passed_on(func: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(func)
        def wrapper(*args: Any, **kwargs: Any) -> Any:  # plain, but gives something to await
            return func(*args, **kwargs)

        return wrapper

    @app.get("/above/{n}")
    @profile_endpoint
    @noted
    async def above(n: int) -> int:
        return spin(n)

    @app.get("/below/{n}")
    @noted
    @profile_endpoint
    async def below(n: int) -> int:
        return spin(n)

    @app.get("/over/{n}")
    @profile_endpoint
    @passed_on
    async def over(n: int) -> int:
        await nap()
        return spin(n)

    async with client(app) as http:
        for path in ("above", "below", "over"):
            assert (await http.get(f"/{path}/3")).json() == 3
    assert seen == ["above", "below"]
    assert [calls_of(one.last, "work") for one in (above, below.__wrapped__, over)] == [3, 3, 3]


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_many_at_once_neither_fail_nor_mix(kind: str) -> None:
    app, profiles = FastAPI(), dict[str, list[Profile]](a=[], b=[])
    meeting = threading.Barrier(8, timeout=10)

    if kind == "async":

        @app.get("/a")
        @profile_endpoint(on_report=profiles["a"].append)
        async def a() -> int:
            for _ in range(10):
                work()
                await asyncio.sleep(0.001)
            return 1

        @app.get("/b")
        @profile_endpoint(on_report=profiles["b"].append)
        async def b() -> int:
            for _ in range(90):
                other_work()
                await asyncio.sleep(0)
            return 1
    else:

        @app.get("/a")
        @profile_endpoint(on_report=profiles["a"].append)
        def a() -> int:
            meeting.wait()
            return [work() for _ in range(10)].count(1)

        @app.get("/b")
        @profile_endpoint(on_report=profiles["b"].append)
        def b() -> int:
            meeting.wait()
            return [other_work() for _ in range(90)].count(2)

    async with client(app) as http:
        paths = ["/a", "/b"] * 20
        replies = await asyncio.gather(*(http.get(path) for path in paths))
    assert [reply.status_code for reply in replies] == [200] * 40
    assert {(calls_of(one, "work"), calls_of(one, "other_work")) for one in profiles["a"]} == {(10, 0)}
    assert {(calls_of(one, "work"), calls_of(one, "other_work")) for one in profiles["b"]} == {(0, 90)}
    assert len(profiles["a"]) == len(profiles["b"]) == 20
    assert all(one.complete for both in profiles.values() for one in both)


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_fifty_requests_after_an_exception_are_fine(kind: str) -> None:
    app, profiles = FastAPI(), list[Profile]()

    def answer(fail: bool) -> int:
        work()
        if fail:
            raise ValueError("no")
        return 1

    if kind == "async":

        @app.get("/")
        @profile_endpoint(on_report=profiles.append)
        async def endpoint(fail: bool = False) -> int:
            await nap()
            return answer(fail)
    else:

        @app.get("/")
        @profile_endpoint(on_report=profiles.append)
        def endpoint(fail: bool = False) -> int:
            return answer(fail)

    async with client(app) as http:
        assert (await http.get("/?fail=1")).status_code == 500
        assert [(await http.get("/")).status_code for _ in range(50)] == [200] * 50
    assert [calls_of(one, "work") for one in profiles] == [1] * 51
    assert sys.getprofile() is None


async def test_a_cancelled_request_leaves_nothing_behind() -> None:
    closed = []

    @profile_endpoint
    async def endless() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            closed.append(work())

    with anyio.move_on_after(0.02):
        await endless()
    assert closed == [1] and calls_of(endless.last, "work") == 1
    assert sys.getprofile() is None


@contextlib.contextmanager
def busy_thread() -> Iterator[None]:
    over, started = threading.Event(), threading.Event()

    def run() -> None:
        while not over.is_set():
            other_work()
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait(5)
    try:
        yield
    finally:
        over.set()
        thread.join()


async def test_calls_of_other_threads_stay_out() -> None:
    @profile_endpoint
    def plain() -> int:
        time.sleep(0.03)
        return spin(200)

    with busy_thread():
        plain()
    assert (calls_of(plain.last, "other_work"), calls_of(plain.last, "work")) == (0, 200)


async def test_wall_holds_the_wait_and_not_the_profiler() -> None:
    @profile_endpoint
    async def waits() -> int:
        await asyncio.sleep(0.05)
        return spin(20_000)

    began = time.perf_counter()
    await waits()
    around = time.perf_counter() - began
    last = waits.last
    assert 0.05 <= last.waiting <= last.wall <= around
    # The time that the profiler took is in what went by around the call, and not in what it says.
    assert sum(one.own for one in last.functions) == pytest.approx(last.wall - last.waiting)


async def test_own_times_add_up_and_recursion_counts_once() -> None:
    def fall(n: int) -> int:
        return 0 if n == 0 else 1 + fall(n - 1)

    @profile_endpoint
    def deep() -> int:
        return fall(300) + len(sorted(range(50), key=lambda x: -x))

    deep()
    by_name = {one.name.split(".")[-1]: one for one in deep.last.functions}
    root = by_name["deep"]
    assert by_name["fall"].calls == 301 and by_name["<lambda>"].calls == 50
    assert sum(one.own for one in deep.last.functions) == pytest.approx(root.cumulative)
    assert all(0 <= one.own <= one.cumulative <= root.cumulative * 1.000001 for one in deep.last.functions)


async def test_a_coroutine_that_waits_is_called_once() -> None:
    async def helper() -> None:
        for _ in range(5):
            await nap()

    @profile_endpoint
    async def endpoint() -> None:
        await helper()
        await asyncio.gather(nap(), nap())

    await endpoint()
    assert calls_of(endpoint.last, "helper") == 1
    assert calls_of(endpoint.last, "nap") == 5  # those that gather makes run as tasks of their own


async def test_another_profiler_in_the_thread_is_left_alone() -> None:
    @profile_endpoint
    def inner() -> int:
        return spin(3)

    @profile_endpoint
    def outer() -> int:
        return inner()

    assert outer() == 3
    assert not inner.last.complete and inner.last.functions == () and inner.last.wall > 0
    assert outer.last.complete and calls_of(outer.last, "work") == 3
    assert "Otro profiler" in repr(inner.last)

    @profile_endpoint
    def naive() -> int:  # the course's profiler, on top of ours
        profile = cProfile.Profile()
        profile.enable()
        try:
            return spin(3)
        finally:
            profile.disable()

    assert naive() == 3
    assert naive.last.complete == (sys.version_info >= (3, 12))  # before, cProfile takes the place of ours
    assert sys.getprofile() is None


class Callable_:
    async def __call__(self, n: int) -> int:
        await nap()
        return spin(n)


async def test_partials_methods_and_objects_are_endpoints_too() -> None:
    app, named = FastAPI(), Callable_()

    def add(n: int, more: int) -> int:
        return spin(n) + more

    app.get("/partial/{n}")(partial(add, more=1))
    app.get("/object/{n}")(named)
    app.get("/method/{n}")(named.__call__)
    for path, box in {"/partial/40000": "add", "/object/40000": "__call__", "/method/40000": "__call__"}.items():
        profile = await request_profile(app, path)
        assert calls_of(profile, "work") == 40_000 and profile.undisturbed and profile.complete
        assert any(node.name.endswith(box) and node.own for _, node in boxes(profile.tree)), path
    wrapped = profile_endpoint(named)
    assert await wrapped(3) == 3 and calls_of(wrapped.last, "work") == 3 and not wrapped.last.undisturbed


async def test_generators_are_refused() -> None:
    def parts() -> Iterator[int]:
        yield 1

    with pytest.raises(MeasurementError, match="parts"):
        profile_endpoint(parts)


async def test_table_looks_like_that_of_cprofile() -> None:
    @profile_endpoint
    def plain() -> int:
        return spin(4)

    plain()
    assert plain.last.waiting == 0
    lines = plain.last.table(3).splitlines()
    assert "function calls" in lines[0]
    head = next(line for line in lines if "ncalls  tottime  percall  cumtime" in line)
    assert len(lines[lines.index(head) + 1 :]) == 3
    assert "{built-in method builtins.sum}" in plain.last.table(30)
    assert list(plain.last.df.columns) == ["name", "file", "line", "calls", "own", "cumulative"]
    assert "plain" in plain.last._repr_html_()


def an_app(tmp_path: Path) -> FastAPI:
    app, router = FastAPI(), APIRouter(prefix="/in")
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'some.db'}")

    @app.middleware("http")
    async def middleware(request: Any, call_next: Callable[..., Awaitable[Any]]) -> Any:
        return await call_next(request)

    def asleep(seconds: float) -> None:
        time.sleep(seconds)

    @router.get("/plain")
    def plain() -> int:
        asleep(0.03)
        return spin(10)

    @router.get("/waits")
    async def waits() -> int:
        await asyncio.sleep(0.03)
        return spin(10)

    @router.get("/rows")
    async def rows() -> int:
        async with engine.connect() as connection:
            for _ in range(60):
                await connection.execute(text("select 1"))
        await engine.dispose()
        return spin(10)

    app.include_router(router)
    outer = FastAPI()
    outer.mount("/mounted", app)
    return outer


def boxes(node: plots.Node, path: str = "") -> Iterator[tuple[str, plots.Node]]:
    here = f"{path}/{node.name}"
    yield here, node
    for child in node.children:
        yield from boxes(child, here)


async def request_profile(app: FastAPI, path: str) -> Profile:
    async with client(app) as http:

        async def make() -> httpx.Response:
            reply = await http.get(path)
            assert reply.status_code == 200, reply.text
            return reply

        return await profile_async(make, label=f"GET {path}")


@pytest.mark.parametrize(
    ("name", "box"),
    [("plain", "plain/asleep/sleep"), ("waits", "waits/espera (await)"), ("rows", "rows/sqlalchemy")],
)
async def test_profile_async_sees_the_endpoint_wherever_it_runs(name: str, box: str, tmp_path: Path) -> None:
    profile = await request_profile(an_app(tmp_path), f"/mounted/in/{name}")
    assert calls_of(profile, "work") == 10 and calls_of(profile, name) == 1
    found = dict(boxes(profile.tree))
    where = [node for path, node in found.items() if box in path.replace("asyncio/", "")]
    assert where, list(found)
    if name != "rows":
        assert max(node.value for node in where) > profile.wall / 3
        assert box.split("/")[-2] in finding(profile.tree)
    # The picture shares out the time of the request that no profiler disturbed.
    assert profile.tree.value == pytest.approx(profile.wall)
    html = profile._repr_html_()
    assert "<img" in html and "ncalls" in html and len(html) < 150_000
    assert profile.plot().alt
    settings.set_language("en")
    assert "espera" not in str(replace(profile).tree)


def a_streaming_app(reports: list[Profile]) -> FastAPI:
    app = FastAPI()

    def piece() -> bytes:
        end = time.perf_counter() + 0.01
        while time.perf_counter() < end:  # a sleep would give too few samples for a picture of them
            sum(range(1000))
        return b"%d" % work()

    def plain_body() -> Iterator[bytes]:
        for _ in range(5):
            yield piece()

    async def async_body() -> AsyncIterator[bytes]:
        for _ in range(5):
            await asyncio.sleep(0)
            yield piece()

    async def broken_body() -> AsyncIterator[bytes]:
        yield piece()
        raise ValueError

    bodies: dict[str, Callable[[], Any]] = {"plain": plain_body, "async": async_body, "broken": broken_body}

    @app.get("/plain/{body}")
    @profile_endpoint(on_report=reports.append)
    def plain(body: str) -> StreamingResponse:
        return StreamingResponse(bodies[body]())

    @app.get("/async/{body}")
    @profile_endpoint(on_report=reports.append)
    async def later(body: str) -> StreamingResponse:
        return StreamingResponse(bodies[body]())

    return app


@pytest.mark.parametrize("body", ["plain", "async"])
@pytest.mark.parametrize("endpoint", ["plain", "async"])
async def test_a_streamed_body_is_work_of_the_endpoint(endpoint: str, body: str) -> None:
    profile = await request_profile(a_streaming_app([]), f"/{endpoint}/{body}")
    assert (calls_of(profile, "piece"), calls_of(profile, "work")) == (5, 5)
    assert calls_of(profile, f"{body}_body") == 1
    found = {path: node.value for path, node in boxes(profile.tree)}
    (seconds,) = [value for path, value in found.items() if path.endswith(f"{body}_body/piece")]
    waiting = sum(value for path, value in found.items() if "(await)" in path)  # of the loop, while the pool works
    assert (
        seconds > profile.wall / 2 > 1.5 * waiting
        and f"{body}_body" in "".join(found)
        and "piece" in finding(profile.tree)
    )


async def test_a_streamed_body_is_reported_at_its_end_even_if_it_raises() -> None:
    reports: list[Profile] = []
    async with client(a_streaming_app(reports)) as http:
        for path, pieces in (("/plain/plain", 5), ("/async/async", 5)):
            assert (await http.get(path)).text == "1" * pieces
        with contextlib.suppress(ValueError):
            await http.get("/async/broken")
    assert [calls_of(one, "piece") for one in reports] == [5, 5, 1]
    assert all(one.complete for one in reports)


def test_simulated_latency_is_no_sleep_of_the_users() -> None:
    mine, library, nap = (__file__, "mine"), (str(Path(asyncio.__file__)), "run"), ("", "sleep")
    simulated = (str(Path(plots.__file__).with_name("faults.py")), "wait")

    class Slept(Pictured):
        label = "GET /"

    slept = Slept()
    slept.stacks = [([mine, library, simulated, nap], 2.0), ([mine, nap], 1.0)]
    found = {path: node.value for path, node in boxes(slept.tree)}
    assert {path: value for path, value in found.items() if "sleep" in path} == {"/GET //mine/sleep": 1.0}
    assert max(value for path, value in found.items() if "latencia simulada" in path) == 2.0


async def test_profile_async_looks_below_our_own_decorator() -> None:
    app = FastAPI()

    @app.get("/")
    @profile_endpoint
    def endpoint() -> int:
        return spin(3)

    profile = await request_profile(app, "/")
    assert profile.functions[0].name.endswith("endpoint") and profile.complete
    assert not [one for one in profile.functions if "measured" in one.name]
    assert endpoint.last is None


async def test_profile_async_of_what_reaches_no_endpoint() -> None:
    app = FastAPI()
    async with client(app) as http:
        profile = await profile_async(lambda: http.get("/none"), label="GET /none")
    assert profile.functions == () and "GET /none" in repr(profile) and profile.table()
    assert profile.plot()


async def test_requests_beside_it_are_not_profiled(tmp_path: Path) -> None:
    async with client(an_app(tmp_path)) as http:
        beside = asyncio.ensure_future(http.get("/mounted/in/plain"))
        profile = await profile_async(lambda: http.get("/mounted/in/waits"))
        await beside
    assert (calls_of(profile, "waits"), calls_of(profile, "plain")) == (1, 0)


@given(
    st.lists(
        st.tuples(
            st.lists(
                st.sampled_from(
                    [("/x/me.py", "f"), ("/x/me.py", "<listcomp>"), ("/y/site-packages/lib/a.py", "g"), AWAIT]
                ),
                max_size=8,
            ),
            st.floats(0, 10),
        ),
        max_size=20,
    )
)
def test_folding_loses_no_time(stacks: list[Any]) -> None:
    class Some(Pictured):
        pass

    some = Some()
    some.label, some.stacks = "all", stacks
    assert some.tree.value == pytest.approx(sum(seconds for _, seconds in stacks))
    for _, node in boxes(some.tree):
        assert sum(child.value for child in node.children) <= node.value * 1.000001
    assert finding(some.tree)
