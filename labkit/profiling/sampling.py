"""Look at the application from outside while it serves: uvicorn in a process of its own, load on it,
py-spy beside.

py-spy reads the memory of the running process a hundred times a second. The application is not changed and
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
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import pandas as pd

from labkit._frames import is_user_frame
from labkit._html import Safe, card
from labkit._text import say
from labkit.errors import MeasurementError, ServiceError
from labkit.profiling._tree import Frame, Pictured, Stack, finding, is_border
from labkit.services import ports, watchdog

_RATE = 100  # samples a second
_FRAME = re.compile(r"(.*) \((.*?)(?::\d+)?\)$")
_PARKED = ("selectors.py", "queue.py", "threading.py", "thread.py")  # where idle threads wait for work
# Where Yama guards processes (Ubuntu's default) only an ancestor may look into one, unless it says otherwise.
_SERVE = """
import ctypes, sys, uvicorn
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1))  # PR_SET_PTRACER, anyone
uvicorn.main()
"""


@dataclass(frozen=True)
class SampleReport(Pictured):
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

    @property
    def df(self) -> pd.DataFrame:
        """Seconds of all threads by the function that they stood in, the most first."""
        rows = [(*stack[-1], seconds) for stack, seconds in self.stacks]
        frame = pd.DataFrame(rows, columns=["file", "function", "seconds"])
        return frame.groupby(["file", "function"], as_index=False).sum().sort_values("seconds", ascending=False)

    def __repr__(self) -> str:
        key = "profiling.sampled_errors" if self.errors else "profiling.sampled"
        says = say(key, label=self.label, requests=self.requests, seconds=self.seconds, errors=self.errors)
        return f"{says} {finding(self.tree)}"

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
        seconds: how long (py-spy takes whole seconds).
        factory: whether ``attr`` is a function that makes the application.
        env: environment variables to add for the child.
        clients: how many requests there are at a time.

    Raises:
        MeasurementError: if the application does not start, py-spy is missing or the system forbids its look.
    """
    look = [str(_spy()), "record", "--idle", "--full-filenames", "--format", "raw", "--rate", str(_RATE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(env or {})}
    with tempfile.TemporaryDirectory(prefix="labkit-") as name:
        folder, port, over = Path(name), ports.free(), Event()
        argv = [sys.executable, "-c", _SERVE, target, "--host", ports.HOST, "--port", str(port)]
        argv += ["--log-level", "warning", *(["--factory"] if factory else [])]
        look += ["--duration", str(max(1, round(seconds))), "--output", str(folder / "raw")]
        server = watchdog.spawn(argv, log=folder / "log", name=target, env=environment)
        try:
            with server, ThreadPoolExecutor(clients) as pool:
                server.until(lambda: _listens(port), 30.0)
                over.set()
                _ask(port, path, over)  # what is loaded at the first request is not what we look for
                over.clear()
                asking = [pool.submit(_ask, port, path, over) for _ in range(clients)]
                look += ["--pid", str(server.pid)]
                try:
                    spied = subprocess.run(look, capture_output=True, text=True, timeout=seconds + 30)
                finally:
                    over.set()
        except ServiceError as error:
            line = server.last_line()
            raise MeasurementError(say("profiling.not_served", target=target, line=line)) from error
        if spied.returncode:
            reason = " ".join(spied.stderr.partition("Stack backtrace")[0].split())
            raise MeasurementError(say("profiling.spy_failed", error=reason))
        stacks = tuple(_stacks((folder / "raw").read_text(encoding="utf-8")))
    statuses = [status for asked in asking for status in asked.result()]
    errors = sum(not 200 <= status < 400 for status in statuses)
    return SampleReport(f"GET {path}", seconds, len(statuses), errors, stacks)


def _spy() -> Path:
    spy = Path(sys.executable).with_name("py-spy")
    if not spy.exists():
        raise MeasurementError(say("profiling.no_spy", python=sys.executable))
    return spy


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ports.HOST, port)) == 0


def _ask(port: int, path: str, over: Event) -> list[int]:
    """Request a path until it is over, once at least; the statuses, 0 where there was no answer."""
    statuses, connection = list[int](), http.client.HTTPConnection(ports.HOST, port, timeout=20)
    while not statuses or not over.is_set():
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            reply.read()
            statuses.append(reply.status)
        except (OSError, http.client.HTTPException):
            connection.close()
            statuses.append(0)
            over.wait(0.05)
    connection.close()
    return statuses


def _stacks(raw: str) -> Iterator[Stack]:
    for line in raw.splitlines():
        text, _, samples = line.rpartition(" ")
        stack = [(match[2], match[1]) for frame in text.split(";") if (match := _FRAME.match(frame))]
        if stack and not _idle(stack):
            yield stack, int(samples) / _RATE


def _idle(stack: list[Frame]) -> bool:
    """Whether the thread waits for work: the loop between two callbacks, a worker at its queue."""
    if any(name.endswith("run_forever") for _, name in stack):
        return not any(map(is_border, stack))
    return stack[-1][0].endswith(_PARKED) and not any(is_user_frame(file) for file, _ in stack)
