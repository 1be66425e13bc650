"""``python -m labkit lab`` really started: what it prints, serves and leaves behind."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from labkit.__main__ import main
from labkit.course import launcher
from tests.conftest import write_notebook
from tests.launching import SECONDS, free_port, started


def ask(address: str, path: str, token: str | None, method: str = "GET", body: bytes | None = None) -> int:
    parts = urlsplit(address)
    headers = {"Authorization": f"token {token}"} if token else {}
    request = urllib.request.Request(
        f"{parts.scheme}://{parts.netloc}{path}", headers=headers, method=method, data=body
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)


def running_kernels(pid: int) -> list[psutil.Process]:
    """The kernels that a server started, once they listen (what a kernel forks while it starts is not one)."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(pid).children()
            kernels = [child for child in children if "ipykernel_launcher" in " ".join(child.cmdline())]
            if kernels and all(kernel.net_connections() for kernel in kernels):
                return kernels
        time.sleep(0.05)
    raise AssertionError("no kernel started")


def test_it_copies_the_notebooks_prints_the_address_and_ends_at_ctrl_c(workbook: Path, work: Path) -> None:
    port = free_port()
    with started(workbook, work, "--port", str(port)) as lab:
        address = lab.address()
        parts = urlsplit(address)
        assert (parts.hostname, parts.port) == ("127.0.0.1", port)
        assert parts.path == "/lab/tree/es/00_start.ipynb"
        assert (work / "es/00_start.ipynb").exists()
        token = parts.query.removeprefix("token=")
        assert len(token) >= 32
        assert token not in " ".join(psutil.Process(lab.pid).cmdline())
        assert ask(address, "/api/status", token) == 200
        assert ask(address, "/api/status", None) == 403
        assert ask(address, "/api/status", "wrong") == 403
        assert ask(address, "/api/contents/es/00_start.ipynb", token) == 200
        listens = [c.laddr.ip for c in psutil.Process(lab.pid).net_connections() if c.status == "LISTEN"]
        assert set(listens) == {"127.0.0.1"}

        assert ask(address, "/api/kernels", token, "POST", json.dumps({"name": "python3"}).encode()) == 201
        kernels = running_kernels(lab.pid)
        assert not any("JUPYTER_TOKEN" in kernel.environ() for kernel in kernels)

        assert lab.end() == 0
        assert "JupyterLab terminó" in lab.said
        assert not psutil.wait_procs(kernels, timeout=10)[1], "the kernels must end with the server"
        before_the_end, _, _ = lab.said.partition("Cierro JupyterLab")  # a kernel's last words are its own
        assert not re.search(r"(?i)traceback|warning|error|\[[WEC] ", before_the_end), before_the_end
        assert not list((work / ".jupyter/data/runtime").glob("jpserver*")), "no token may stay behind"


def test_a_taken_port_is_told_and_the_next_free_one_used(workbook: Path, work: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with started(workbook, work, "--port", str(port), "--language", "en") as lab:
            address = lab.address()
            assert urlsplit(address).port != port
            assert f"Port {port} is taken: using {urlsplit(address).port}." in lab.said
            assert urlsplit(address).path == "/lab/tree/en/00_start.ipynb"
            assert lab.end(signal.SIGTERM) == 0


def test_a_jupyter_of_her_own_does_not_interfere(workbook: Path, work: Path, tmp_path: Path) -> None:
    """A configuration at home that opens the server to the world and loads what is not there is not read."""
    config = tmp_path / "home/.jupyter"
    config.mkdir(parents=True)
    bad = {
        "ServerApp": {"ip": "0.0.0.0", "jpserver_extensions": {"not_here": True}},
        "IdentityProvider": {"token": ""},
    }
    (config / "jupyter_server_config.json").write_text(json.dumps(bad))
    with started(workbook, work, "--port", str(free_port()), HOME=str(tmp_path / "home")) as lab:
        address = lab.address()
        assert ask(address, "/api/status", None) == 403
        assert "not_here" not in lab.said
        assert lab.end() == 0


def test_her_work_inside_the_project_is_served_with_the_project(workbook: Path) -> None:
    work = workbook / "work"
    with started(workbook, work, "--port", str(free_port())) as lab:
        address = lab.address()
        assert urlsplit(address).path == f"/lab/tree/{work.name}/es/00_start.ipynb"
        token = urlsplit(address).query.removeprefix("token=")
        assert ask(address, "/api/contents/notebooks/es/00_start.ipynb", token) == 200


@pytest.mark.parametrize(
    ("platform", "environment", "screen"),
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("linux", {"DISPLAY": ":0", "CI": "true"}, False),
        ("darwin", {}, True),
        ("win32", {}, True),
    ],
)
def test_where_a_browser_can_open(
    monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], screen: bool
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "CI"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert launcher.has_screen() is screen


def test_reset_from_the_command_line(workbook: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reset", "00"]) == 0
    write_notebook(work / "es/00_start.ipynb", ["mine = 1"])
    assert main(["reset", "00_start", "--language", "es"]) == 0
    assert str(next((work / "backup/es").iterdir())) in capsys.readouterr().out
    assert main(["reset", "99", "--language", "en"]) == 1
    assert capsys.readouterr().err == "There is no lesson '99'. The lessons are: 00_start.\n"


def test_what_fails_is_one_sentence_and_status_1(
    tmp_path: Path, workbook: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABKIT_WORK", str(tmp_path / "file/work"))
    assert main(["lab", "--no-browser"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "LABKIT_WORK" in error


def test_the_launcher_does_not_wait_for_what_lessons_load() -> None:
    """Figures and tables cost a second and a half, which a learner who types the command need not pay."""
    code = "import sys, labkit.course.launcher; print(sorted({'pandas', 'matplotlib', 'fastapi'} & {*sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
