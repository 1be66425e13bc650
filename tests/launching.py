"""The launcher in a child process, for tests that talk to a real JupyterLab."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SECONDS = 60


class Started:
    """A launcher in a child process with all that it has printed."""

    def __init__(self, folder: Path, work: Path, *arguments: str, **environment: str) -> None:
        env = {**os.environ, "LABKIT_WORK": str(work), "PYTHONUNBUFFERED": "1", **environment}
        env.pop("JUPYTER_TOKEN", None)
        self.log = work.parent / "launcher.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "labkit", "lab", "--no-browser", *arguments],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def address(self) -> str:
        end = time.monotonic() + SECONDS
        while not (found := re.search(r"(http://\S+)\s", self.said)):
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.said}"
            assert time.monotonic() < end, f"no address in:\n{self.said}"
            time.sleep(0.05)
        return found[1]

    def end(self, how: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(how)
        return self.process.wait(SECONDS)


@contextmanager
def started(folder: Path, work: Path, *arguments: str, **environment: str) -> Iterator[Started]:
    lab = Started(folder, work, *arguments, **environment)
    try:
        yield lab
    finally:
        with suppress(ProcessLookupError):
            lab.process.kill()
        lab.process.wait(SECONDS)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
