"""Children that never outlive us: not after an interrupt, not after a crash, not after ``kill -9``.

Each child gets a session of its own, so that Ctrl-C and Jupyter's interrupt do not reach it, and a watchdog:
one small Python process (``_guard.py``) that holds the reading end of a pipe. When the pipe breaks, it ends
the child and removes its temporary folder. A normal end is left to it too: bad days take a path used daily.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from labkit._text import say
from labkit.errors import ServiceError
from labkit.services import _guard

# The child waits for a line on its input until the watchdog knows its number: otherwise a kill -9 of this
# process between the two would leave an orphan.
_GATE = ("/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh")
_SERIOUS = re.compile(r"FATAL|PANIC|error|failed|denied|not found", re.IGNORECASE)


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    name: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Process:
    """Start a program that ends with us; its output is appended to ``log``.

    Args:
        argv: the program and its arguments.
        log: file for what it writes, on both channels.
        name: what messages call it; default: the program's file name.
        env: its whole environment; default: ours.
        cwd: its working folder; default: ours.

    Raises:
        ServiceError: if the program is missing or cannot be started.
    """
    process = Process(name or Path(argv[0]).name, log=log)
    try:
        process.run(argv, env=env, cwd=cwd)
    except BaseException:
        process.stop()
        raise
    return process


@dataclass
class _State:
    """What the finalizer needs: it must not hold the ``Process`` itself."""

    guard: subprocess.Popen[bytes]
    folder: Path | None
    owner: int = field(default_factory=os.getpid)
    child: subprocess.Popen[bytes] | None = None
    closed: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    def tell(self, word: str | int) -> None:
        """Write a line to the watchdog; one that was lost hears nothing, and ``_close`` does its work."""
        if os.getpid() != self.owner:  # a fork of us sees no children, and must not say that they have ended
            return
        assert self.guard.stdin is not None
        try:
            self.guard.stdin.write(f"{word}\n".encode())
        except (OSError, ValueError):
            return

    def poll(self) -> int | None:
        """The child's exit code, None while it runs. Once it is reaped its number is no longer ours."""
        if self.child is None:
            return 0
        with self.lock:
            if (code := self.child.poll()) is not None:
                self.tell(0)
            return code


class Process:
    """A place for one child at a time, watched for as long as the place exists.

    Args:
        name: what messages call the child.
        log: file for what the children write.
        folder: a temporary folder of ours, to be removed at the end.
        ending: the signal that asks the child to end by itself.
        patience: seconds that it then has before SIGKILL.

    Raises:
        ServiceError: if the watchdog cannot be started.
    """

    def __init__(
        self,
        name: str,
        *,
        log: Path,
        folder: Path | None = None,
        ending: int = signal.SIGTERM,
        patience: float = 5.0,
    ) -> None:
        self.name, self.log, self.pid = name, log, 0
        self._mark = 0
        script = str(Path(_guard.__file__))
        argv = [sys.executable, "-I", "-S", "-B", script, str(os.getpid()), str(int(ending)), str(patience)]
        try:
            with log.open("ab") as out:
                guard = _popen([*argv, str(folder or "")], name=name, out=out, cwd=Path("/"))
        except BaseException:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        self._state = _State(guard, folder)
        self._finalizer = weakref.finalize(self, _close, self._state, patience)

    def run(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        """Start a child; the one before it is killed if it still runs.

        Raises:
            ServiceError: if the program is missing or cannot be started, or after ``stop``.
        """
        with self._state.lock:
            if self._state.closed:
                raise ServiceError(say("services.stopped", name=self.name))
            if shutil.which(argv[0]) is None:
                raise ServiceError(say("services.missing", name=self.name, path=argv[0]))
            self.kill()
            with self.log.open("ab") as out:
                self._mark = out.tell()
                child = _popen([*_GATE, *argv], name=self.name, out=out, env=env, cwd=cwd)
            self._state.child, self.pid = child, child.pid
            self._state.tell(child.pid)
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin as gate:
                gate.write(b"\n")

    def poll(self) -> int | None:
        """The child's exit code (negative: the signal that ended it), or None while it runs."""
        return self._state.poll()

    @property
    def alive(self) -> bool:
        """Whether the child runs, frozen or not."""
        return self.poll() is None

    @property
    def frozen(self) -> bool:
        """Whether the child stands still, by ``freeze`` or by anybody's SIGSTOP."""
        return self.alive and _guard.stopped(self.pid)

    def until(self, ready: Callable[[], bool], seconds: float = 15.0) -> None:
        """Wait until ``ready()`` is true.

        Raises:
            ServiceError: if the child ends first, or after ``seconds``; it names the log's last line.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            self.check()
            self._pause(deadline, seconds)

    def wait(self, seconds: float) -> int:
        """Wait until the child ends by itself; its exit code.

        Raises:
            ServiceError: after ``seconds``; it names the log's last line.
        """
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            self._pause(deadline, seconds)
        return code

    def _pause(self, deadline: float, seconds: float) -> None:
        if time.monotonic() > deadline:
            raise ServiceError(say("services.silent", name=self.name, seconds=seconds, line=self.last_line()))
        time.sleep(0.002)

    def check(self) -> None:
        """Raise a ``ServiceError`` that names the log's last line unless the child runs."""
        if (code := self.poll()) is None:
            return
        how = next((one.name for one in signal.Signals if one == -code), str(code))
        raise ServiceError(say("services.ended", name=self.name, how=how, line=self.last_line()))

    def freeze(self) -> None:
        """Stop the child and its descendants where they stand (SIGSTOP): connections stay, nothing answers.

        Raises:
            ServiceError: if it does not run.
        """
        with self._state.lock:
            self.check()
            _guard.freeze(self.pid)

    def thaw(self) -> None:
        """Let a frozen child go on.

        Raises:
            ServiceError: if it does not run.
        """
        with self._state.lock:
            self.check()
            _guard.thaw(self.pid)

    def kill(self) -> None:
        """End the child at once (SIGKILL), with its descendants. Nothing happens if it does not run."""
        with self._state.lock:
            if self._state.child is not None and self.alive:
                _guard.end(self.pid, signal.SIGKILL, 0)
                self._state.child.wait()
                self.poll()

    def stop(self) -> None:
        """End the child and its watchdog and remove the temporary folder. A second time does nothing."""
        self._finalizer()

    def log_text(self) -> str:
        """What the present child has written."""
        try:
            return self.log.read_bytes()[self._mark :].decode("utf-8", "replace")
        except OSError:
            return ""

    def last_line(self) -> str:
        """The log's line that tells most: the last serious one of its last five, else the last."""
        lines = [line.strip() for line in self.log_text().splitlines() if line.strip()][-5:]
        serious = [line for line in lines if _SERIOUS.search(line)]
        return (serious or lines or ["-"])[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()


def _popen(
    argv: Sequence[str],
    *,
    name: str,
    out: IO[bytes],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            bufsize=0,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise ServiceError(say("services.no_start", name=name, error=error.strerror or error)) from error


def _close(state: _State, patience: float) -> None:
    """End everything, once: on ``stop``, when the ``Process`` is collected, or at the interpreter's exit."""
    if os.getpid() != state.owner:  # a fork of us: the children are not its own
        return
    with state.lock:
        state.closed = True
        state.poll()
        state.tell("end")
        assert state.guard.stdin is not None
        state.guard.stdin.close()
        try:
            state.guard.wait(patience + 10)
        except subprocess.TimeoutExpired:
            state.guard.kill()
            state.guard.wait()
        if state.poll() is None:  # the watchdog was lost
            assert state.child is not None
            _guard.end(state.child.pid, signal.SIGKILL, 0)
            state.child.wait()
        if state.folder:
            shutil.rmtree(state.folder, ignore_errors=True)
