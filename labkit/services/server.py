"""What every server of ours can do: be frozen, killed, and started again on the same address."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from labkit.services import ports
from labkit.services.watchdog import Process


class Server(ABC):
    """A running server. A context manager; also stopped when it is collected and at the interpreter's exit.

    Attributes:
        port: of 127.0.0.1; kept by ``restart``.
    """

    port: int
    _process: Process

    @abstractmethod
    def _start(self, port: int) -> None:
        """Start on this port; return when it serves."""

    @property
    def pid(self) -> int | None:
        """Process id of the last server started; None for a fake, which has no process of its own."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the server runs, frozen or not."""
        return self._process.alive

    @property
    def frozen(self) -> bool:
        """Whether the server runs and stands still."""
        return self._process.frozen

    def freeze(self) -> None:
        """Stop the server and its processes (SIGSTOP): connections stay open and nothing answers.

        Raises:
            ServiceError: if the server does not run.
        """
        self._process.freeze()

    def thaw(self) -> None:
        """Go on after ``freeze``; what was sent meanwhile is answered now.

        Raises:
            ServiceError: if the server does not run.
        """
        self._process.thaw()

    def kill(self) -> None:
        """End the server at once, as a crash would (SIGKILL). Twice is fine."""
        self._process.kill()

    def restart(self) -> None:
        """Start again on the same address. What PostgreSQL has committed and Redis has in its append-only
        file is there again; without that file a Redis is empty.

        Raises:
            ServiceError: if it does not start, or after ``stop``.
        """
        self._start(self.port)

    def stop(self) -> None:
        """End the server and remove what it kept in temporary folders. Twice is fine."""
        self._process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {ports.HOST}:{self.port} pid {self.pid}{'' if self.alive else ', ended'}>"
