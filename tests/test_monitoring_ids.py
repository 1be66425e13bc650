"""The ids of requests: which are taken over, how new ones look, and where they are known."""

from __future__ import annotations

import asyncio
import os
import string
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import StreamingResponse
from hypothesis import example, given, settings
from hypothesis import strategies as st

from labkit.monitoring import Metrics, MetricsMiddleware
from labkit.monitoring.ids import accepted, new_id, request_id
from tests.measured import ask, asked, run

SANE = frozenset((string.ascii_letters + string.digits + "._:/+=@-").encode())
HEADER = b"x-request-id"


async def bare(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


MEASURED = MetricsMiddleware(bare, metrics=Metrics())


def is_new(text: str) -> bool:
    return len(text) == 32 and set(text) <= set("0123456789abcdef")


@given(st.binary(max_size=140) | st.text("abcXYZ019._:/+=@- \r\n\0é", max_size=140).map(str.encode))
@example(b"")
@example(b"a" * 128)
@example(b"a" * 129)
@example(b"abc\n")
@example(b"abc\r\nset-cookie: x=1")
@example(b"6f9619ff-8b86-d011-b42d-00cf4fc964ff")
@example(b"Root=1-67891233-abcdef012345678912345678")
@settings(max_examples=300, deadline=None)
def test_a_sane_id_is_taken_over_as_it_is_and_any_other_is_replaced(raw: bytes) -> None:
    sane = 1 <= len(raw) <= 128 and set(raw) <= SANE
    assert accepted(raw) == (raw.decode() if sane else None)
    answer = asked(MEASURED, headers=[(HEADER, raw)])
    sent = answer.header("x-request-id")
    assert sent == raw.decode() if sane else is_new(sent)
    assert not any(b"\r" in part or b"\n" in part for pair in answer.headers for part in pair)


def test_of_several_the_first_counts() -> None:
    assert asked(MEASURED, headers=[(HEADER, b"one"), (HEADER, b"two")]).header("x-request-id") == "one"
    assert is_new(asked(MEASURED, headers=[(HEADER, b"not sane"), (HEADER, b"two")]).header("x-request-id"))


def test_new_ids_are_never_the_same_in_any_thread() -> None:
    with ThreadPoolExecutor(8) as threads:
        made = [each for many in threads.map(lambda _: [new_id() for _ in range(5_000)], range(8)) for each in many]
    assert len(set(made)) == 40_000
    assert all(map(is_new, made))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_workers_do_not_hand_out_the_same_ids() -> None:
    code = (
        "import os\nfrom labkit.monitoring.ids import new_id\nnew_id()\n"
        "child = os.fork()\nos.write(1, f'{new_id()}\\n'.encode())\nchild and os.waitpid(child, 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert len(set(done.stdout.split())) == 2


def test_it_is_known_to_whatever_runs_for_the_request_and_to_nothing_else() -> None:
    app = FastAPI()
    app.add_middleware(MetricsMiddleware, metrics=Metrics())
    known: dict[str, list[str]] = {}

    def note(request: Request, place: str) -> None:
        known.setdefault(request.state.request_id, []).append(f"{place} {request_id.get()}")

    def in_thread(request: Request) -> None:
        note(request, "dependency")

    @app.get("/async")
    async def asynchronous(request: Request, later: BackgroundTasks) -> str:
        note(request, "async")
        await asyncio.sleep(0)
        await asyncio.create_task(asyncio.to_thread(note, request, "task"))
        later.add_task(note, request, "background")
        return request_id.get()

    @app.get("/sync")
    def synchronous(request: Request) -> str:
        assert threading.current_thread() is not threading.main_thread()
        note(request, "sync")
        return request_id.get()

    @app.get("/stream")
    def stream(request: Request) -> StreamingResponse:
        def parts() -> Any:
            for _ in range(3):
                note(request, "part")
                yield request_id.get() + " "

        return StreamingResponse(parts())

    async def work() -> list[str]:
        paths = ["/async", "/sync", "/stream"] * 20
        answers = await asyncio.gather(*(ask(app, path) for path in paths))
        assert request_id.get() == ""
        for path, answer in zip(paths, answers, strict=True):
            own = answer.header("x-request-id")
            assert {*answer.body.decode().replace('"', "").split()} == {own}, path
        await ask(app, "/async")
        assert request_id.get() == ""  # afterwards, in the task that has called the application
        return [answer.header("x-request-id") for answer in answers]

    ids = run(work)
    assert len(set(ids)) == 60 and set(ids) < set(known)
    assert all(line.split()[1] == own for own, lines in known.items() for line in lines)
    assert {line.split()[0] for lines in known.values() for line in lines} == {
        "async",
        "task",
        "background",
        "sync",
        "part",
    }
    assert request_id.get() == ""


def test_a_request_within_a_request_gives_the_id_back() -> None:
    inner = FastAPI()
    inner.add_middleware(MetricsMiddleware, metrics=Metrics())
    inner.get("/")(lambda: request_id.get())
    app = FastAPI()
    app.add_middleware(MetricsMiddleware, metrics=Metrics())

    @app.get("/")
    async def outer() -> list[str]:
        before, other = request_id.get(), await ask(inner, headers=[(HEADER, b"other")])
        return [before, other.json_body(), request_id.get()]

    assert asked(app, headers=[(HEADER, b"mine")]).json_body() == ["mine", "other", "mine"]


def test_a_request_that_is_thrown_away_in_another_context_closes_quietly() -> None:
    """As when a loop ends that nobody has waited for: its coroutines are closed by whoever collects them."""
    metrics = Metrics()

    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def work() -> Any:
        from tests.measured import scope_of

        coroutine = MetricsMiddleware(hangs, metrics=metrics)(scope_of(), None, None)  # type: ignore[arg-type]

        async def first_step() -> None:
            coroutine.send(None)

        await asyncio.create_task(first_step())  # a context of its own
        return coroutine

    run(work).close()
    assert metrics.registry.get_sample_value(
        "app_requests_total", {"method": "GET", "endpoint": "unmatched", "status": "499"}
    )
