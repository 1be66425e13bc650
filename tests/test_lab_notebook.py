"""The Lab in a real kernel: places are cells, an interrupt frees the cell, what is displayed can be displayed."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

APP = """
    import asyncio, time
    from fastapi import FastAPI
    from labkit import Lab
    app = FastAPI()
    app.state.prepare = lambda progress: [progress(done, 2) for done in range(3)]

    @app.get("/hangs")
    async def hangs():
        print("begun", flush=True)
        await asyncio.sleep(60)

    @app.get("/blocks")
    async def blocks():
        print("begun", flush=True)
        while True: pass

    lab = Lab(app)
"""


class Kernel:
    """Runs cells and gives what they showed."""

    def __init__(self, manager: Any, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client

    def run(self, cell: str, *, interrupt: bool = False) -> dict[str, str]:
        shown = {"text": "", "html": "", "error": ""}

        def show(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                shown["text"] += content["text"]
                if interrupt and "begun" in content["text"]:
                    self.manager.interrupt_kernel()
            elif message["msg_type"] in ("display_data", "update_display_data", "execute_result"):
                shown["text"] += content["data"].get("text/plain", "")
                shown["html"] += content["data"].get("text/html", "")
            elif message["msg_type"] == "error":
                shown["error"] = content["ename"]

        self.client.execute_interactive(textwrap.dedent(cell), output_hook=show, timeout=60)
        return shown


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    environment = {**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    manager, client = start_new_kernel(kernel_name="python3", env=environment)
    try:
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_learner_works_in_cells(kernel: Kernel) -> None:
    first = kernel.run(APP)
    assert not first["error"] and "<progress" in first["html"]
    for word in ("uno", "dos"):
        cell = f'@app.get("/x")\ndef x() -> str:\n    return "{word}"\nlab.get("/x")'
        shown = kernel.run(cell)
        assert word in shown["html"] and "GET /x → 200" in shown["text"]
    kernel.run('@app.get("/raises")\ndef raises() -> float:\n    return 1 / 0')
    shown = kernel.run('lab.get("/raises")')
    assert "celda [4], línea 3, en raises" in shown["html"] and "ZeroDivisionError" in shown["html"]
    for path in ("/hangs", "/blocks"):
        shown = kernel.run(f'lab.get("{path}")', interrupt=True)
        assert shown["error"] == "KeyboardInterrupt"
        assert "200" in kernel.run('lab.get("/x")')["text"]
    assert not kernel.run("lab.close()")["error"]
    assert "cerrado" in kernel.run('try:\n    lab.get("/x")\nexcept Exception as e:\n    print(e)')["text"]
