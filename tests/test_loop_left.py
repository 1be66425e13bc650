"""What cannot be stopped is kept aside: neither its collection nor the exit runs it again."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PROGRAM = """
    import asyncio, gc, time
    from contextlib import asynccontextmanager
    from fastapi import FastAPI
    from labkit import Lab

    @asynccontextmanager
    async def lifespan(app):
        try:
            yield
        finally:
            print("end", flush=True)

    app = FastAPI(lifespan=lifespan)

    @app.get("/blocks")
    async def blocks():
        time.sleep(4)

    @app.get("/stays")
    async def stays():
        while True:
            try: await asyncio.sleep(60)
            except: continue

    lab = Lab(app, time_limit=1.5)
    try:
        lab.get("{path}")
    except Exception as error:
        print(type(error).__name__, lab.tainted, lab.get("/docs").status, flush=True)
    {then}
"""


def start(path: str, then: str) -> subprocess.Popen[str]:
    program = textwrap.dedent(PROGRAM).format(path=path, then=then)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_exit_frees_nothing_that_was_given_up() -> None:
    woken = "time.sleep(4)"  # the blocked loop came back before the exit, and its thread has ended
    runs = [("/blocks", woken), ("/blocks", f"{woken}; lab.close(); gc.collect()"), ("/stays", "")]
    runs += [("/stays", "lab.close(); del lab; gc.collect()")]
    children = [start(path, then) for path, then in runs]
    ends = [(*child.communicate(timeout=60), child.returncode) for child in children]
    assert ends == [("RequestTimeout True 200\nend\n", "", 0)] * len(runs)
