"""A Lab's end: closed by hand, by nobody, at the exit; nothing is left."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from labkit import Lab
from labkit.errors import RequestError, RequestTimeout
from tests.labs import alive, asking, plain, with_lifespan


def test_closing_twice_is_fine_and_then_it_is_closed() -> None:
    lab = Lab(plain())
    assert "Tienda: abierto" in repr(lab)
    lab.close()
    lab.close()
    assert "cerrado" in repr(lab)
    with pytest.raises(RequestError, match="cerrado"):
        lab.get("/async")


def test_two_labs_are_independent() -> None:
    one, two = Lab(plain(), time_limit=0.2), Lab(plain())
    assert one.get("/sync").json and two.get("/sync").json
    with pytest.raises(RequestTimeout):
        one.get("/hangs")
    one.close()
    assert two.get("/async").json == 1
    two.close()


def test_a_lab_that_nobody_holds_closes() -> None:
    steps: list[str] = []
    lab = Lab(with_lifespan(lambda: None, lambda: steps.append("end")))
    gone = weakref.ref(lab)
    lab.get("/n")
    del lab
    gc.collect()
    assert gone() is None and steps == ["end"]


def _threads_and_files() -> tuple[int, int]:
    folder = Path("/proc/self/fd")
    return threading.active_count(), len(list(folder.iterdir())) if folder.exists() else 0


def test_twenty_cycles_leave_nothing() -> None:
    def cycle(redis: bool) -> Any:
        with Lab(asking(redis_url=None, database_url=None), redis=None if redis else False) as lab:
            lab.get("/state")
            return lab.redis.pid if lab.redis else None

    cycle(redis=True)
    before = _threads_and_files()
    pids = [cycle(redis=number < 3) for number in range(20)]
    end = time.monotonic() + 5
    while time.monotonic() < end and any(a > b for a, b in zip(_threads_and_files(), before, strict=True)):
        time.sleep(0.02)
    assert all(a <= b for a, b in zip(_threads_and_files(), before, strict=True))
    assert not any(pid and alive(pid) for pid in pids)


PROGRAM = """
    import asyncio, time
    from contextlib import asynccontextmanager
    from fastapi import FastAPI
    from labkit import Lab

    @asynccontextmanager
    async def lifespan(app):
        yield
        print("end", flush=True)
        {end}

    app = FastAPI(lifespan=lifespan)
    app.get("/hangs")(lambda: time.sleep(60))
    lab = Lab(app, time_limit={limit})
    try:
        {use}
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


@pytest.mark.parametrize(
    ("use", "limit", "end", "printed"),
    [
        ("lab.get('/hangs')", 0.1, "pass", "RequestTimeout\nend\n"),
        ("lab.get('/')", 60, "await asyncio.sleep(60)", "end\n"),
        ("lab.get('/')", 60, "raise OSError('nobody is left to be told')", "end\n"),
    ],
)
def test_the_exit_closes_what_was_left_open(use: str, limit: float, end: str, printed: str) -> None:
    program = textwrap.dedent(PROGRAM).format(use=use, limit=limit, end=end)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert (done.stdout, done.stderr) == (printed, "")
