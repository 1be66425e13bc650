"""fakeredis on a loopback port: stands in for the server where there is no wheel."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import hiredis
from fakeredis import TcpFakeServer
from redis.exceptions import ResponseError

from labkit._text import say
from labkit.errors import ServiceError
from labkit.services import ports
from labkit.services.commands import KEPT, Command, Note
from labkit.services.redis import RedisServer


class FakeRedis(RedisServer):
    """A server in a thread of this process. What freezes, dies and comes back is simulated.

    Args:
        appendonly: keep the data over ``restart``.
        forced: whether a setting asked for it although the real server is there; only ``notice`` differs.
    """

    fake = True

    def __init__(self, *, appendonly: bool, forced: bool) -> None:
        self.notice = say("services.fake_forced" if forced else "services.fake_notice")
        self._appendonly = appendonly
        self._stopped = False
        self._server: _Server | None = None
        self._data: Any = None
        ports.claim(self._start, raced=lambda: True)

    @property
    def pid(self) -> None:
        """None: the process is our own, and not to be signalled."""
        return

    @property
    def alive(self) -> bool:
        return self._server is not None

    @property
    def frozen(self) -> bool:
        return self._server is not None and not self._server.moving.is_set()

    @property
    def delay(self) -> float:
        return self._server.delay if self._server is not None else 0.0

    def slow(self, ms: float) -> None:
        self._running().delay = ms

    def freeze(self) -> None:
        self._running().moving.clear()

    def thaw(self) -> None:
        self._running().moving.set()

    def kill(self) -> None:
        if self._server is not None:
            self._data = self._server.fake_server
            self._server.end()
            self._server = None

    def restart(self) -> None:
        if self._stopped:
            raise ServiceError(say("services.stopped", name="fakeredis"))
        self.kill()
        self._start(self.port)

    def stop(self) -> None:
        self._stopped = True
        self.kill()

    @contextmanager
    def _listening(self, note: Note) -> Iterator[None]:
        # fakeredis knows no MONITOR: we read along at the connections.
        server = self._running()
        server.notes.append(note)
        try:
            yield
        finally:
            server.notes.remove(note)

    def _start(self, port: int) -> None:
        self.port = port
        try:
            self._server = _Server((ports.HOST, port))
        except OSError as error:
            raise ServiceError(say("services.no_start", name="fakeredis", error=error.strerror)) from error
        if self._appendonly and self._data is not None:
            self._server.fake_server = self._data

    def _running(self) -> _Server:
        if self._server is None:
            raise ServiceError(say("services.ended", name="fakeredis", how="kill", line="-"))
        return self._server


class _Server(TcpFakeServer):
    """TcpFakeServer whose commands can be held back and whose threads do not delay the interpreter's end."""

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address)
        self.daemon_threads = True
        self.moving = threading.Event()
        self.moving.set()
        self.delay = 0.0
        self.notes: list[Note] = []
        self.ended = False
        self.RequestHandlerClass = _held_back(self.RequestHandlerClass)
        threading.Thread(target=self.serve_forever, args=(0.02,), name="labkit-fakeredis", daemon=True).start()

    def end(self) -> None:
        self.ended = True
        self.shutdown()
        self.moving.set()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is its client's affair; the default would print it."""


class _Gate:
    """The reading side of a connection, which waits while the server is frozen and tells what it read."""

    def __init__(self, file: Any, server: _Server, client: tuple[str, int]) -> None:
        self._file, self._server, self._client = file, server, f"{client[0]}:{client[1]}"
        self._words = hiredis.Reader()

    def readline(self) -> bytes:
        self._server.moving.wait()
        line: bytes = b"" if self._server.ended else self._file.readline()
        if line.startswith(b"*"):  # a command begins
            time.sleep(self._server.delay / 1000)
        with suppress(hiredis.ProtocolError):
            self._words.feed(line)
            while words := self._words.gets():  # a command ends
                shown = tuple(_printable(word) for word in words)
                for note in tuple(self._server.notes):
                    note(Command(time.time(), self._client, shown))
        return line

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _printable(word: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}" for byte in word[:KEPT])


def _held_back(handler: Any) -> Any:
    """The handler class of fakeredis with a ``_Gate``; made from the class at hand: its module is private."""

    def setup(self: Any) -> None:
        handler.setup(self)
        self.rfile = _Gate(self.rfile, self.server, self.client_address)
        read = self.current_client.read_response

        def answer() -> Any:
            # fakeredis hangs up after it has refused a command; a server answers, and goes on.
            try:
                return read()
            except ResponseError as refusal:
                return refusal

        self.current_client.read_response = answer

    return type("HeldBack", (handler,), {"setup": setup})
