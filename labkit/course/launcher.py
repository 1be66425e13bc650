"""Start JupyterLab on the learner's notebooks: on loopback, with its token and no call to anywhere else."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from labkit import settings
from labkit._text import Catalogue
from labkit.course import workspace
from labkit.errors import CourseError

say = Catalogue("labkit.course")
OUR_SETTINGS = Path(__file__).parent / "jupyter"


def has_screen() -> bool:
    """Whether a browser could show up: not in CI, nor on a Unix other than macOS without a display."""
    if os.environ.get("CI"):
        return False
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def run(language: str, *, port: int = 8888, browser: bool | None = None, tell: Callable[[str], None]) -> None:
    """Copy the notebooks, start JupyterLab at the first one and stay until it ends (Ctrl-C).

    Args:
        language: which edition to open.
        port: the port to try first; if it is taken, the next free one is used and told.
        browser: whether to open one; default: where there is a screen.
        tell: receives each sentence for the person who waits.

    Raises:
        CourseError: if there are no notebooks or JupyterLab does not start.
        WorkFolderError: if the work folder cannot be written.
    """
    browser = has_screen() if browser is None else browser
    settings.set_language(language)
    copies = workspace.sync(language)
    for line in copies.lines():
        tell(line)
    first = copies.folder / next(iter(workspace.lessons(language).values())).name
    served = _served_folder(first)
    _isolate(settings.work_folder() / ".jupyter")
    os.environ["LABKIT_LANG"] = language

    # The token goes in by the environment, and out of it again before any kernel could inherit it.
    token = os.environ.setdefault("JUPYTER_TOKEN", secrets.token_hex(24))
    try:
        server = _server(served, first, port, browser)
        del os.environ["JUPYTER_TOKEN"]

        def announce() -> None:
            if server.port != port:
                tell(say("launcher.other_port", wanted=port, port=server.port))
            address = f"http://127.0.0.1:{server.port}{_tree_path(served, first)}?token={token}"
            tell(say("launcher.opening" if browser else "launcher.address", address=address))
            tell(say("launcher.stop"))

        _end_on_interrupt(server, tell)
        server.io_loop.add_callback(announce)  # once it listens, which it does first thing in its loop
        server.start()
    except SystemExit as error:
        raise CourseError(say("launcher.failed")) from error
    tell(say("launcher.ended", folder=settings.work_folder()))


def _served_folder(first: Path) -> Path:
    """The project, so that labkit's own source can be read beside the lessons; else the work folder alone."""
    project = workspace.root()
    return project if first.is_relative_to(project) else settings.work_folder()


def _tree_path(served: Path, notebook: Path) -> str:
    return "/lab/tree/" + quote(notebook.relative_to(served).as_posix())


def _isolate(home: Path) -> None:
    """Keep Jupyter's settings, open tabs and kernels in the work folder, away from any other Jupyter."""
    os.environ["JUPYTER_CONFIG_DIR"] = str(home)
    os.environ["JUPYTER_DATA_DIR"] = str(home / "data")
    os.environ["JUPYTER_CONFIG_PATH"] = str(OUR_SETTINGS)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["JUPYTER_PLATFORM_DIRS"] = "1"  # else jupyter_core warns about its own future


def _server(served: Path, first: Path, port: int, browser: bool) -> _Server:
    from jupyterlab.labapp import LabApp  # here, for it costs a second that the other commands need not pay

    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.root_dir": served,
        "ServerApp.open_browser": browser,
        "Application.log_level": "ERROR",  # its warnings are about its own affairs
        "KernelManager.transport_encryption": "auto",  # without it each kernel warns the learner
        "LabApp.default_url": _tree_path(served, first),
        "LabApp.extension_manager": "readonly",  # the other one asks a package registry
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "LabApp.news_url": "None",
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--allow-root")
    server: _Server = LabApp.initialize_server(argv=arguments)
    return server


def _end_on_interrupt(server: _Server, tell: Callable[[str], None]) -> None:
    """End kernels and server at the first Ctrl-C, unasked; at the second one wait no more."""

    def end(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tell(say("launcher.stopping"))
        server.stop(from_signal=True)

    for name in ("SIGINT", "SIGHUP"):  # a closed terminal too, where there is such a signal
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), end)


class _Server(Protocol):
    """What is used of ``jupyter_server.ServerApp``, which has no types."""

    port: int
    io_loop: Any

    def start(self) -> None: ...

    def stop(self, from_signal: bool) -> None: ...
