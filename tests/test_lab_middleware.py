"""Middleware that runs the rest of the application in a task of its own hides nothing of a request."""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request

from labkit import Lab
from labkit.errors import RequestTimeout


def app() -> FastAPI:
    app = FastAPI()

    for _ in range(2):

        @app.middleware("http")
        async def passes(request: Request, call_next: Any) -> Any:
            return await call_next(request)

    @app.get("/waits")
    async def waits() -> None:
        await asyncio.sleep(60)

    @app.get("/spins")
    async def spins() -> None:
        while True:
            pass

    @app.get("/works")
    def works() -> None:
        while True:
            time.sleep(0.001)

    @app.get("/exits")
    def exits() -> None:
        sys.exit(3)

    @app.get("/interrupts")
    async def interrupts() -> None:
        raise KeyboardInterrupt

    @app.get("/ok")
    def ok() -> int:
        return 42

    return app


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(app(), time_limit=0.2) as lab:
        yield lab


def _line(text: str) -> int:
    return next(n for n, line in enumerate(inspect.getsource(sys.modules[__name__]).splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("path", "says", "line"),
    [
        ("/waits", "esperaba", "asyncio.sleep(60)"),
        ("/spins", "bloqueó el bucle", ""),
        ("/works", "seguía en marcha", "time.sleep(0.001)"),
    ],
)
def test_a_limit_is_a_limit_and_names_the_endpoints_line(lab: Lab, path: str, says: str, line: str) -> None:
    with pytest.raises(RequestTimeout, match=f"{says}.* en tests/test_lab_middleware.py:") as caught:
        lab.get(path)
    assert not line or f"test_lab_middleware.py:{_line(line)}." in str(caught.value)
    assert lab.get("/ok").json == 42 and not lab.tainted


@pytest.mark.parametrize(("path", "error"), [("/exits", "SystemExit: 3"), ("/interrupts", "KeyboardInterrupt")])
def test_an_endpoint_that_ends_the_process_is_an_answer(lab: Lab, path: str, error: str) -> None:
    reply = lab.get(path)
    assert reply.status == 500 and reply.error.endswith(error) and "test_lab_middleware.py" in reply.error
    assert lab.get("/ok").json == 42
