"""Make a Redis of ours slow, for whoever asks it and from whatever process: its commands take a detour.

The server gives up its port (``CONFIG SET port 0``) and its unix socket (renamed), and a thread of ours listens
in their place. It passes on what arrives, each piece a fixed time after it came, as a longer way would. What
was connected before is disconnected once, so that it comes by here from then on.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from labkit._text import say
from labkit.errors import ServiceError
from labkit.services import ports

_PIECE = 1 << 20  # bytes passed on at once
_SECONDS = 2.0  # that the server has to make way
_EVERYBODY = "CLIENT KILL USER default SKIPME yes"


class Detour:
    """Stands in front of a server until ``end``.

    Args:
        port, path: of the server, which must run and not be frozen.
        ms: milliseconds that each command is held back; may be set anew at any time.

    Raises:
        ServiceError: if the server does not make way.
    """

    def __init__(self, port: int, path: Path, ms: float) -> None:
        self.ms = ms
        self._port, self._path, self._own = port, path, path.with_name("own")
        self._loop = asyncio.new_event_loop()
        self._leave = asyncio.Event()
        self._ready: SimpleQueue[OSError | None] = SimpleQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        _tell(path, "CONFIG SET port 0")
        path.rename(self._own)
        self._thread = threading.Thread(target=self._live, name="labkit detour", daemon=True)
        self._thread.start()
        if (failed := self._ready.get()) is not None:
            self.end()
            raise ServiceError(say("services.no_start", name="Redis", error=failed.strerror)) from failed
        _tell(self._own, _EVERYBODY)

    def end(self, alive: bool = True) -> None:
        """Let the server have its places back; ``alive`` says whether it is there to take them. Twice is fine.

        Raises:
            ServiceError: if it runs and does not answer; nothing has changed then.
        """
        if alive and self._own.exists():
            _tell(self._own, "PING")
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(_SECONDS)
        if self._own.exists():
            self._own.rename(self._path)
            if alive:
                _tell(self._path, f"CONFIG SET port {self._port}")

    def _live(self) -> None:
        with suppress(asyncio.CancelledError), asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        try:
            servers = [
                await asyncio.start_server(self._accept, ports.HOST, self._port, limit=_PIECE),
                await asyncio.start_unix_server(self._accept, self._path, limit=_PIECE),
            ]
        except OSError as error:
            self._ready.put(error)
            return
        self._path.chmod(0o700)
        self._ready.put(None)
        await self._leave.wait()
        for server in servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._pass(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        both = [writer]
        try:
            answers, server = await asyncio.open_unix_connection(self._own, limit=_PIECE)
            both.append(server)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._send(reader, server))
                group.create_task(self._return(answers, writer))
        except* (OSError, _Closed):
            pass
        finally:
            for each in both:
                each.close()

    async def _send(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        """To the server, late. What comes meanwhile waits its own time and not that of those before it."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def read() -> None:
            while data := await reader.read(_PIECE):
                waiting.put_nowait((self._loop.time() + self.ms / 1000, data))
            raise _Closed

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(due - self._loop.time())
                server.write(data)
                await server.drain()

    async def _return(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await answers.read(_PIECE):
            writer.write(data)
            await writer.drain()
        raise _Closed


class _Closed(Exception):
    """One side has hung up."""


def _tell(path: Path, command: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_SECONDS)
        try:
            client.connect(str(path))
            client.sendall(command.encode() + b"\r\n")
            answer = client.recv(512)
        except OSError as error:
            raise ServiceError(say("services.unanswered", name="Valkey", command=command, error=error)) from error
        if answer[:1] not in b"+:":
            line = answer.decode(errors="replace").strip()
            raise ServiceError(say("services.unanswered", name="Valkey", command=command, error=line))
