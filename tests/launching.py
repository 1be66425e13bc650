"""The launcher in a child process that ends with the tests, for those that talk to a real JupyterLab."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labkit.services import watchdog

SECONDS = 60


class Started:
    """A launcher and all that it has printed."""

    def __init__(self, folder: Path, work: Path, *arguments: str, **environment: str) -> None:
        env = {**os.environ, "LABKIT_WORK": str(work), "PYTHONUNBUFFERED": "1", **environment}
        env.pop("JUPYTER_TOKEN", None)
        self.log = work.parent / "launcher.log"
        self.process = watchdog.spawn(
            [sys.executable, "-m", "labkit", "lab", "--no-browser", *arguments], log=self.log, env=env, cwd=folder
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def address(self) -> str:
        """The address it printed, once it has."""
        end = time.monotonic() + SECONDS
        while not (found := re.search(r"(http://\S+)\s", self.said)):
            assert self.process.alive, f"it ended with {self.process.poll()}:\n{self.said}"
            assert time.monotonic() < end, f"no address in:\n{self.said}"
            time.sleep(0.05)
        return found[1]

    def end(self, how: signal.Signals = signal.SIGINT) -> int | None:
        """Send it a signal and return its exit code."""
        os.kill(self.pid, how)
        end = time.monotonic() + SECONDS
        while self.process.alive:
            assert time.monotonic() < end, f"it does not end:\n{self.said}"
            time.sleep(0.02)
        return self.process.poll()


@contextmanager
def started(folder: Path, work: Path, *arguments: str, **environment: str) -> Iterator[Started]:
    """``python -m labkit lab --no-browser`` in ``folder``, ended with the block if it still runs."""
    lab = Started(folder, work, *arguments, **environment)
    with lab.process:
        yield lab


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
