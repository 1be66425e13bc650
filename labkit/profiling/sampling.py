"""Look at the application from outside while it serves: uvicorn in a process of its own, load on it, py-spy beside.

py-spy reads the memory of the running process some hundred times a second. The application is not changed and
hardly slowed, so this is how it is done in production; what it cannot do is count calls.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import pandas as pd

from labkit import plots
from labkit._frames import is_user_frame
from labkit._html import Safe, card
from labkit._text import say
from labkit.errors import MeasurementError, ServiceError
from labkit.profiling._tree import BORDER, Frame, Stack, finding, fold
from labkit.services import ports, watchdog

_RATE = 100  # samples a second
# Where Yama guards processes (Ubuntu's default) only an ancestor may look into one, unless it allows it itself.
_SERVE = """
import ctypes, sys, uvicorn
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER, anyone
uvicorn.main()
"""
_FRAME = re.compile(r"(.*) \((.*?)(?::\d+)?\)$")
_PARKED = ("selectors.py", "queue.py", "threading.py", "thread.py")  # where idle threads wait for work


@dataclass(frozen=True)
class SampleReport:
    """Samples of an application under load.

    Attributes:
        label: the request that made the load.
        seconds: how long samples were taken.
        requests: answers received meanwhile; ``errors`` of them were no 2xx or 3xx.
        stacks: where the threads that had work stood, with the seconds they stood there, sleeping included.
    """

    label: str
    seconds: float
    requests: int
    errors: int
    stacks: tuple[Stack, ...] = field(repr=False)

    @cached_property
    def tree(self) -> plots.Node:
        """Calls as boxes in boxes: your functions by name, each library as one box."""
        return fold(self.stacks, self.label)

    @property
    def df(self) -> pd.DataFrame:
        """Seconds of all threads by the function they stood in, the most first."""
        rows = [(function, file, seconds) for stack, seconds in self.stacks for file, function in stack[-1:]]
        frame = pd.DataFrame(rows, columns=["function", "file", "seconds"])
        return (
            frame.groupby(["function", "file"], as_index=False).sum().sort_values("seconds", ascending=False)
        )

    def plot(self) -> plots.Figure:
        """The samples as an icicle."""
        return plots.icicle(self.tree, finding(self.tree), say("profiling.icicle_alt", label=self.label))

    def __repr__(self) -> str:
        says = say("profiling.sampled", label=self.label, requests=self.requests, seconds=self.seconds)
        trouble = " " + say("profiling.sample_errors", errors=self.errors) if self.errors else ""
        return f"{says} {finding(self.tree)}.{trouble}"

    def _repr_html_(self) -> Safe:
        return card(repr(self), self.plot().html(with_table=False), note=say("profiling.sample_note"))


def sample(
    target: str,
    path: str = "/",
    seconds: float = 3.0,
    *,
    factory: bool = False,
    env: Mapping[str, str] | None = None,
    clients: int = 4,
) -> SampleReport:
    """Serve an application with uvicorn in a child process and sample it with py-spy under load.

    Args:
        target: ``"module:attr"`` of the application, importable from here.
        path: what the clients request, with GET.
        seconds: how long.
        factory: whether ``attr`` is a function that makes the application.
        env: environment variables to add for the child.
        clients: how many requests there are at a time.

    Raises:
        MeasurementError: if the application does not start, py-spy is missing or the system forbids its look.
    """
    spy = Path(sys.executable).with_name("py-spy")
    if not spy.exists():
        raise MeasurementError(say("profiling.no_spy", python=sys.executable))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(env or {})}
    with tempfile.TemporaryDirectory(prefix="labkit-") as folder:
        log, raw, port = Path(folder) / "uvicorn.log", Path(folder) / "raw", ports.free()
        argv = [sys.executable, "-c", _SERVE, target, "--host", ports.HOST, "--port", str(port)]
        argv += ["--log-level", "warning", *(["--factory"] if factory else [])]
        try:
            with watchdog.spawn(argv, log=log, name=target, env=environment) as server:
                server.until(lambda: _listens(port), 30.0)
                look = [str(spy), "record", "--idle", "--full-filenames", "--format", "raw"]
                look += ["--rate", str(_RATE), "--duration", str(max(1, round(seconds)))]
                look += ["--output", str(raw), "--pid", str(server.pid)]
                with _Load(port, path, clients) as load:
                    spied = subprocess.run(look, capture_output=True, text=True, timeout=seconds + 30)
        except ServiceError as error:
            raise MeasurementError(say("profiling.not_served", target=target, error=error)) from error
        if spied.returncode or not raw.exists():
            reason = " ".join(spied.stderr.partition("Stack backtrace")[0].split())
            raise MeasurementError(say("profiling.spy_failed", error=reason or spied.returncode))
        stacks = tuple(_stacks(raw.read_text(encoding="utf-8")))
    errors = sum(not 200 <= status < 400 for status in load.statuses)
    return SampleReport(f"GET {path}", seconds, len(load.statuses), errors, stacks)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ports.HOST, port)) == 0


class _Load:
    """Threads that ask for one path again and again, until the end of the ``with`` block."""

    def __init__(self, port: int, path: str, clients: int) -> None:
        self.statuses: list[int] = []
        self._address, self._path, self._over = (ports.HOST, port), path, threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=30)
        while not self._over.is_set():
            try:
                connection.request("GET", self._path)
                reply = connection.getresponse()
                reply.read()
                self.statuses.append(reply.status)
            except (OSError, http.client.HTTPException):
                connection.close()
                self.statuses.append(0)
                self._over.wait(0.05)
        connection.close()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(31)


def _stacks(raw: str) -> Iterator[Stack]:
    for line in raw.splitlines():
        text, _, samples = line.rpartition(" ")
        found = [_FRAME.match(frame) for frame in text.split(";")]
        stack: list[Frame] = [(match[2], match[1]) for match in found if match]
        if stack and not _idle(stack):
            yield stack, int(samples) / _RATE


def _idle(stack: Sequence[Frame]) -> bool:
    """Whether the thread stands where it waits for work: the loop between two callbacks, a worker at its queue."""
    files = [file for file, _ in stack]
    if any(name.endswith("run_forever") for _, name in stack):
        return not any(BORDER.search(file) for file in files)
    return files[-1].endswith(_PARKED) and not any(map(is_user_frame, files))
