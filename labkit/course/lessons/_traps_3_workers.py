"""The trap of Exercise 3 that needs more than one process: uvicorn with two workers, both real."""

from __future__ import annotations

import http.client
import inspect
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from labkit.course.checks import Context, Verdict
from labkit.course.trapcard import Found, judged
from labkit.errors import ServiceError
from labkit.services import ports, watchdog

WORKERS = 2
REQUESTS = 40
SCRAPES = 10
SETTLED = 0.5  # seconds until the last request is counted, wherever
PATIENCE = 10.0  # seconds until each worker has had a request
_TOTAL = re.compile(r'^app_requests_total\{[^}]*endpoint="/work"[^}]*\} (\S+)$', re.MULTILINE)
# Everything is imported once and then forked, as gunicorn's --preload does it: Python starts once and not three times.
_LABKIT = "from labkit.monitoring import Metrics, MetricsMiddleware"
_PROGRAM = """
import os, socket, sys

import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry, Counter, generate_latest
{more}

{instrument}

door = socket.create_server(("{host}", {port}))
for _ in range({workers}):
    if not os.fork():
        app = FastAPI()
        app.get("/work")(lambda: os.getpid())
        {name}(app)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[door])
        sys.exit()
for _ in range({workers}):
    os.wait()
"""


def t56(ctx: Context, trap: Any, cure: Any) -> Found:
    """Each worker counts for itself: how many scrapes show every request."""
    with ThreadPoolExecutor(2) as pool:  # both servers at once: most of it is waiting for Python to start
        (totals, sent), (cured, all_sent) = pool.map(lambda things: _totals(*things), (trap, cure))
    numbers = totals.count(sent), cured.count(all_sent)
    seen = ", ".join(f"{total:g}" for total in sorted(set(totals)))
    return judged(*numbers, bad=lambda n: n < SCRAPES, scrapes=SCRAPES, sent=sent, seen=seen, workers=WORKERS)


def _totals(environment: Mapping[str, str], instrument: Callable[..., Any]) -> tuple[list[float], int]:
    """What each scrape says, and how many requests there were."""
    with TemporaryDirectory(prefix="labkit-") as name:
        folder, port = Path(name), ports.free()
        for counts in environment.values():
            (folder / counts).mkdir(exist_ok=True)
        code = inspect.getsource(instrument)
        more = _LABKIT if "Metrics" in code else ""  # which takes as long to import as everything else together
        names = {"more": more, "instrument": code, "name": instrument.__name__}
        program = _PROGRAM.format(**names, host=ports.HOST, port=port, workers=WORKERS)
        surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
        argv = [sys.executable, "-c", program]
        server = watchdog.spawn(argv, log=folder / "log", name="uvicorn", env=surroundings, cwd=folder)
        with server, ThreadPoolExecutor(8) as pool:
            try:
                server.until(lambda: bool(_ask(port, "/work")), 30.0)
            except ServiceError:
                raise Verdict("error", "course.raised", type="uvicorn", code=server.last_line()) from None
            sent, workers = 1, set[str]()
            end = time.monotonic() + PATIENCE
            while len(workers) < WORKERS and time.monotonic() < end:
                answers = list(filter(None, pool.map(lambda _: _ask(port, "/work"), range(REQUESTS))))
                workers, sent = workers.union(answers), sent + len(answers)
            end = time.monotonic() + SETTLED
            while _total(port) != sent and time.monotonic() < end:  # an answer is counted just after it was sent
                time.sleep(0.01)
            return list(pool.map(lambda _: _total(port), range(SCRAPES))), sent


def _total(port: int) -> float:
    """What one scrape says."""
    return sum(map(float, _TOTAL.findall(_ask(port, "/metrics"))))


def _ask(port: int, path: str) -> str:
    """The answer, by a connection of its own; empty if there is none, or an error."""
    connection = http.client.HTTPConnection(ports.HOST, port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == 200 else ""
    except ConnectionError:
        return ""
    finally:
        connection.close()
