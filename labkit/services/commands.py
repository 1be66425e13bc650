"""The commands a Redis receives, as ``redis-cli monitor`` shows them, and a command of one's own."""

from __future__ import annotations

import re
import secrets
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.exceptions import DataError, RedisClusterException, RedisError, ResponseError
from redis.retry import Retry

from labkit._html import Safe, card, code, table, tag
from labkit._text import say
from labkit.errors import ServiceError

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20  # commands of a repr; ``.df`` has them all
KEPT = 200  # characters of a word
SECONDS = 2.0  # that a Redis may take to answer
MOST = 100_000  # commands that a monitor keeps: the last ones
_LINE = re.compile(r"(\d+\.\d+) \[\d+ (\S+?)\] (.*)", re.DOTALL)
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_KEYLESS = (
    "AUTH CLIENT CLUSTER COMMAND CONFIG DBSIZE DISCARD ECHO EXEC FLUSHALL FLUSHDB HELLO INFO KEYS LASTSAVE MULTI PING"
    " PUBLISH READONLY SCAN SCRIPT SELECT SUBSCRIBE TIME WAIT "
)


@dataclass(frozen=True, slots=True)
class Command:
    """One command that Redis received.

    Attributes:
        time: seconds since 1970, by the server's clock.
        client: its address, ``unix`` for a socket, ``lua`` for what a script runs.
        words: the command and its arguments; bytes that are not ASCII as ``\\x..``, long ones cut short.
    """

    time: float
    client: str
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """The command, in capitals."""
        return self.words[0].upper()

    @property
    def key(self) -> str:
        """The first key it is about; empty if there is none."""
        place = 1
        if self.name in ("EVAL", "EVALSHA"):
            place = 3 if self.words[2:3] != ("0",) else len(self.words)
        elif self.name in ("XREAD", "XREADGROUP"):
            upper = [word.upper() for word in self.words]
            place = upper.index("STREAMS") + 1 if "STREAMS" in upper else len(upper)
        return "" if f"{self.name} " in _KEYLESS else "".join(self.words[place : place + 1])

    def __str__(self) -> str:
        return f"{self.time:.6f} [{self.client}] " + " ".join(f'"{word}"' for word in self.words)


Note = Callable[[Command], object]


class Monitor:
    """What a Redis receives while a ``with`` block lasts; to be looked at inside it and after it.

    Args:
        listen: inside ``with listen(note):`` it calls ``note`` with every command.
        ask: sends a command.

    Attributes:
        cut: whether the server went away meanwhile, so that the last commands may be missing.
    """

    def __init__(self, listen: Callable[[Note], AbstractContextManager[object]], ask: Callable[..., Any]) -> None:
        self._listen, self._ask = listen, ask
        self._noted: deque[Command] = deque(maxlen=MOST)
        self._marks: dict[str, threading.Event] = {}
        self._open: AbstractContextManager[object] | None = None
        self.cut = False

    @property
    def commands(self) -> tuple[Command, ...]:
        """All so far, the oldest first (the last 100,000)."""
        if self._open is not None:
            self._catch_up()
        return tuple(self._noted)

    @property
    def df(self) -> pd.DataFrame:
        """One row a command: ``time`` (UTC), ``client``, ``command``, ``key``, ``arguments`` (all of them)."""
        import pandas as pd

        rows = [(one.time, one.client, one.name, one.key, " ".join(one.words[1:])) for one in self.commands]
        frame = pd.DataFrame(rows, columns=["time", "client", "command", "key", "arguments"])
        return frame.assign(time=pd.to_datetime(frame["time"].astype(float), unit="s", utc=True))

    def __len__(self) -> int:
        return len(self.commands)

    def __enter__(self) -> Self:
        self._noted.clear()
        self._open = self._listen(self._note)
        self._open.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._catch_up()
        opened, self._open = self._open, None
        if opened is not None:
            opened.__exit__(None, None, None)

    def _note(self, command: Command) -> None:
        if mark := self._marks.get(command.words[-1]):
            mark.set()
        else:
            self._noted.append(command)

    def _catch_up(self) -> None:
        """Wait for a command of our own: what was sent before it has been noted then."""
        word = secrets.token_hex(8)
        mark = self._marks[word] = threading.Event()
        try:
            self._ask("ECHO", word)
            self.cut = not mark.wait(SECONDS)
        except ServiceError:
            self.cut = True

    def __repr__(self) -> str:
        title, shown, more = self._told()
        return "\n".join([title, *(f"  {one}" for one in shown), *more])

    def _repr_html_(self) -> Safe:
        title, shown, more = self._told()
        rows = []
        for one in shown:
            at = datetime.fromtimestamp(one.time).strftime("%H:%M:%S.%f")[:-3]
            rest = " ".join(word for word in one.words[1:] if word != one.key)
            rest = tag("span", rest[:80] + ("…" if len(rest) > 80 else ""), "overflow-wrap:anywhere")
            key = tag("span", code(one.key) if one.key else "", "overflow-wrap:anywhere")
            rows.append([at, one.client, code(one.name), key, rest])
        head = [say(f"services.head_{name}") for name in ("time", "client", "command", "key", "arguments")]
        return card(title, table(head, rows), symbol="●", note=" ".join(more))

    def _told(self) -> tuple[str, tuple[Command, ...], list[str]]:
        """The title, the commands to be shown, and what is to be said of the others."""
        commands = self.commands
        more = [say("services.heard_more", count=len(commands) - SHOWN)] if len(commands) > SHOWN else []
        more += [say("services.heard_cut")] if self.cut else []
        return say("services.heard", count=len(commands)), commands[:SHOWN], more


class Watched(ABC):
    """What every Redis can do, ours or not."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The address for any client."""

    def monitor(self) -> Monitor:
        """What the server receives inside ``with server.monitor() as seen:``, as ``redis-cli monitor`` shows it.

        Raises:
            ServiceError: when entered, if the server cannot be reached.
        """
        return Monitor(self._listening, self.command)

    def command(self, *words: str | bytes | float) -> Any:
        """The answer to a command, as redis-py gives it, bytes as text: ``server.command("TTL", key)``.

        Raises:
            ServiceError: if the server refuses, or does not answer within two seconds.
        """
        try:
            with closing(_client(self.url)) as client:
                return client.execute_command(*words)  # type: ignore[no-untyped-call]
        except (OSError, RedisError, RedisClusterException, IndexError) as error:
            raise self._unheard(error, *words) from None

    @contextmanager
    def _listening(self, note: Note) -> Iterator[None]:
        """Have ``note`` called, in a thread of its own, with every command that the server receives."""
        client: Any = _client(self.url.replace("+cluster", ""))
        connection: Any = None

        def listen() -> None:
            with suppress(RedisError, OSError, ValueError):  # the end: ours or the server's
                while True:
                    note(parsed(connection.read_response()))

        try:
            connection = client.connection_pool.get_connection()
            connection.send_command("MONITOR")
            connection.read_response()
            connection._sock.settimeout(None)
            threading.Thread(target=listen, name="labkit monitor", daemon=True).start()
        except (OSError, RedisError) as error:
            raise self._unheard(error, "MONITOR") from None
        try:
            yield
        finally:
            connection.disconnect()  # wakes the thread
            client.close()

    def _unheard(self, error: Exception, *words: object) -> ServiceError:
        command = " ".join(str(word) for word in words)[:KEPT]
        if isinstance(error, ResponseError | DataError | IndexError):
            return ServiceError(say("services.refused", command=command, error=error))
        return ServiceError(say("services.unreached", where=place(self.url), command=command))


def parsed(line: str) -> Command:
    """The command in a line of MONITOR's."""
    found = _LINE.match(line)
    if found is None:
        raise ValueError(line)
    words = (word.replace('\\"', '"').replace("\\\\", "\\")[:KEPT] for word in _WORD.findall(found[3]))
    return Command(float(found[1]), "unix" if found[2].startswith("unix") else found[2], (*words,))


def place(url: str) -> str:
    """Where a server is, without the password."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] or parts.path


def _client(url: str) -> Redis | RedisCluster:
    options: dict[str, Any] = {"decode_responses": True, "encoding_errors": "backslashreplace", "protocol": 2}
    options |= {"socket_timeout": SECONDS, "socket_connect_timeout": SECONDS, "retry": Retry(NoBackoff(), 0)}
    if "+cluster" in url:
        return RedisCluster.from_url(url.replace("+cluster", ""), **options)
    return Redis.from_url(url, driver_info=None, **options)
