"""What htop would show: for Prometheus without waiting, for a person as a table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import pandas as pd
import psutil
import pytest

from labkit import settings
from labkit.monitoring import Metrics, SystemView, overview, system
from labkit.monitoring.system import SystemCollector

Times = namedtuple("Times", "user nice system idle iowait guest")


def samples(collector: SystemCollector) -> dict[tuple[str, str], float]:
    """Values by name and label."""
    families = list(collector.collect())
    return {(one.name, "".join(one.labels.values())): one.value for family in families for one in family.samples}


@pytest.fixture(name="child")
def the_child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


# For Prometheus


def test_a_scrape_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()

    def waits(*_: Any, **__: Any) -> None:
        raise AssertionError("a scrape waits")

    for name in ("cpu_percent", "cpu_times_percent", "Process.cpu_percent"):
        monkeypatch.setattr(f"psutil.{name}", waits)
    for name in ("time.sleep", "threading.Event.wait", "subprocess.Popen"):
        monkeypatch.setattr(name, waits)
    text, _ = metrics.render()
    assert b"app_system_cpu_seconds_total" in text


def test_process_and_machine_as_psutil_sees_them(child: subprocess.Popen[bytes]) -> None:
    own = str(os.getpid())
    values = samples(SystemCollector(lambda: [os.getpid(), child.pid, 2**22 + 1]))
    assert values["app_process_resident_memory_bytes", own] == pytest.approx(
        psutil.Process().memory_info().rss, rel=0.5
    )
    assert 0 < values["app_process_cpu_seconds_total", own] <= sum(psutil.Process().cpu_times()[:2])
    assert values["app_process_threads", str(child.pid)] == 1
    assert {label for name, label in values if name.startswith("app_process")} == {own, str(child.pid)}
    assert values["app_system_memory_bytes", ""] == psutil.virtual_memory().total
    assert 0 < values["app_system_memory_available_bytes", ""] <= values["app_system_memory_bytes", ""]
    assert 0 <= values["app_system_disk_free_bytes", ""] <= values["app_system_disk_bytes", ""]
    assert values["app_system_cpus", ""] == psutil.cpu_count()


def test_processor_time_is_counted_once_and_only_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_times", lambda: Times(10.0, 0.0, 5.0, 80.0, 1.0, 7.0))
    values = samples(SystemCollector(list))
    modes = {label: value for (name, label), value in values.items() if name == "app_system_cpu_seconds_total"}
    assert modes == {"user": 10.0, "nice": 0.0, "system": 5.0, "idle": 80.0, "iowait": 1.0}
    monkeypatch.undo()
    first = samples(SystemCollector(lambda: [os.getpid()]))
    again = samples(SystemCollector(lambda: [os.getpid()]))
    assert all(again[key] >= value for key, value in first.items() if "cpu_seconds" in key[0] and key[1] != "iowait")


def test_what_a_platform_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(psutil, "disk_usage", denied)
    monkeypatch.setattr(psutil, "cpu_count", lambda: None)
    monkeypatch.setattr(psutil.Process, "num_threads", lambda self: (_ for _ in ()).throw(psutil.AccessDenied()))
    values = samples(SystemCollector(lambda: [os.getpid()]))
    assert values["app_system_cpus", ""] == 1
    assert not {name for name, _ in values if "disk" in name or "process" in name}


# For a person


def view(**changed: Any) -> SystemView:
    columns = ["pid", "name", "status", "cpu", "memory_mb", "threads", "running_s"]
    rows = [[10, "python", "running", 0.5, 1200.0, 4, 61.0], [11, "<b>valkey", "stopped", 0.0, 7.0, 6, 3.0]]
    values: dict[str, Any] = {"df": pd.DataFrame(rows, columns=columns), "cpus": 2, "cpu": 0.25, "memory": 0.5}
    values |= {"memory_gb": 8.0, "disk": 0.31, "disk_gb": 252.0, "load": 0.45}
    return SystemView(**values | changed)


def test_this_process_its_children_and_the_machine(child: subprocess.Popen[bytes]) -> None:
    os.kill(child.pid, signal.SIGSTOP)
    while psutil.Process(child.pid).status() != "stopped":
        time.sleep(0.001)
    seen = overview(0.01)
    df = seen.df.set_index("pid")
    assert seen.df["pid"][0] == os.getpid()
    assert df["status"][child.pid] == "stopped" and df["threads"][child.pid] == 1
    assert df["cpu"][child.pid] == 0
    assert (df["memory_mb"] > 0).all() and (df["running_s"] >= 0).all()
    assert seen.cpus >= 1 and seen.memory_gb > 0 and seen.disk_gb > 0
    assert all(0 <= share <= 1 for share in (seen.cpu, seen.memory, seen.disk))
    assert seen.load is None or seen.load >= 0
    os.kill(child.pid, signal.SIGCONT)


def test_work_shows_as_a_share_of_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    monkeypatch.setattr(system.time, "sleep", work)
    assert 0.05 < overview(0.3).df["cpu"][0] < 3


def test_a_process_that_ends_meanwhile_is_left_out(
    monkeypatch: pytest.MonkeyPatch, child: subprocess.Popen[bytes]
) -> None:
    def end(seconds: float) -> None:
        child.kill()
        child.wait()

    monkeypatch.setattr(system.time, "sleep", end)
    assert child.pid not in set(overview().df["pid"])


def test_the_processors_use_between_two_looks() -> None:
    before, after = Times(10.0, 0.0, 5.0, 80.0, 1.0, 9.0), Times(11.0, 0.0, 5.5, 82.0, 1.5, 9.9)
    assert system._use(before, after) == 1.5 / 4.0
    assert system._use(before, before) == 0.0


def test_the_card_in_both_languages() -> None:
    settings.set_language("es")
    assert repr(view()).splitlines() == [
        "2 procesadores al 25 % · memoria: 50 % de 8,0 GB · disco: 31 % de 252 GB · carga: 0,45",
        "PID   Proceso       Estado  CPU Memoria (MB) Hilos Activo (s)",
        " 10    python en ejecución 50 %        1.200     4         61",
        " 11 <b>valkey     detenido  0 %            7     6          3",
    ]
    html = view()._repr_html_()
    assert "&lt;b&gt;valkey" in html and "<b>" not in html and "●" in html
    assert "▲" in view(disk=0.97)._repr_html_()
    settings.set_language("en")
    assert repr(view(load=None)).startswith("2 processors at 25 % · memory: 50 % of 8.0 GB · disk: 31 % of 252 GB\n")
    assert "disk-sleep" in repr(view(df=view().df.assign(status="disk-sleep")))
