"""What htop would show of this process, the servers it started and the machine; and the same for Prometheus.

psutil everywhere: Linux, macOS and Windows. What a platform lacks is left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from labkit import plots
from labkit._html import Safe, card, table
from labkit._text import number, say

LOOK = 0.2  # seconds that `overview` looks at the processors
FULL = 90  # percent of memory or disk that the course calls degraded


def workers(alive: bool = True) -> list[int]:
    """The process ids that have written to PROMETHEUS_MULTIPROC_DIR: those that live, or those that are gone."""
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    pids = {int(pid) for file in folder.glob("*.db") if (pid := file.stem.rpartition("_")[2]).isdigit()}
    return sorted(pid for pid in pids if psutil.pid_exists(pid) == alive)


class SystemCollector:
    """Processes and machine, looked up at each scrape. Never waits: the processors' time is exported as counters.

    Args:
        pids: the processes to tell of; each is a series of its own, with the label ``pid``.
        folder: on the disk to tell of.
    """

    def __init__(self, pids: Callable[[], Iterable[int]], folder: str = "/") -> None:
        self._pids, self._folder = pids, folder

    def collect(self) -> Iterator[Metric]:
        cpu = CounterMetricFamily("app_process_cpu_seconds", "Processor time of the process.", labels=["pid"])
        memory = GaugeMetricFamily("app_process_resident_memory_bytes", "Memory of the process.", labels=["pid"])
        threads = GaugeMetricFamily("app_process_threads", "Threads of the process.", labels=["pid"])
        for pid in self._pids():
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                with process.oneshot():
                    times, size, count = process.cpu_times(), process.memory_info().rss, process.num_threads()
                cpu.add_metric([str(pid)], times.user + times.system)
                memory.add_metric([str(pid)], size)
                threads.add_metric([str(pid)], count)
        yield from (cpu, memory, threads)
        spent = CounterMetricFamily("app_system_cpu_seconds", "Time of all processors.", labels=["mode"])
        for mode, seconds in psutil.cpu_times()._asdict().items():
            if not mode.startswith("guest"):  # contained in user and nice
                spent.add_metric([mode], seconds)
        yield spent
        yield GaugeMetricFamily("app_system_cpus", "Processors of the machine.", psutil.cpu_count() or 1)
        machine = psutil.virtual_memory()
        yield GaugeMetricFamily("app_system_memory_bytes", "Memory of the machine.", machine.total)
        yield GaugeMetricFamily("app_system_memory_available_bytes", "Memory that is free.", machine.available)
        with suppress(OSError):
            disk = psutil.disk_usage(self._folder)
            yield GaugeMetricFamily("app_system_disk_bytes", "Size of the disk.", disk.total)
            yield GaugeMetricFamily("app_system_disk_free_bytes", "Free space on the disk.", disk.free)

    describe = collect


@dataclass(frozen=True, slots=True, repr=False)
class SystemView:
    """Processes and machine at one moment.

    Attributes:
        df: one row a process: ``pid, name, cpu_percent`` (of one processor, within the look), ``memory_mb, threads,
            running_s``; this process is the first, its children follow.
        cpus: processors of the machine; ``cpu_percent`` is their use, of 100.
        memory_percent, disk_percent: how full they are.
        memory_bytes, disk_bytes: how big they are.
        load: processes that wanted a processor in the last minute, on average; None where the system does not say.
    """

    df: pd.DataFrame
    cpus: int
    cpu_percent: float
    memory_percent: float
    memory_bytes: int
    disk_percent: float
    disk_bytes: int
    load: float | None

    @property
    def _machine(self) -> str:
        return say(
            "metrics.machine",
            cpus=self.cpus,
            cpu=self.cpu_percent / 100,
            memory=self.memory_percent / 100,
            memory_gb=self.memory_bytes / 2**30,
            disk=self.disk_percent / 100,
            disk_gb=self.disk_bytes / 2**30,
        )

    def __repr__(self) -> str:
        return f"{self._machine}\n{self.df.to_string(index=False, float_format='{:.1f}'.format)}"

    def _repr_html_(self) -> Safe:
        header = [say(f"metrics.column_{name}") for name in self.df.columns]
        rows = [
            [pid, name, number(cpu, ",.0f") + " %", number(mb, ",.0f") + " MB", threads, number(age, ",.0f") + " s"]
            for pid, name, cpu, mb, threads, age in self.df.itertuples(index=False)
        ]
        full = max(self.memory_percent, self.disk_percent) > FULL
        return card(
            self._machine,
            table(header, rows, numeric=(0, 2, 3, 4, 5)),
            colour=plots.VERMILION if full else plots.BLUE,
            symbol="▲" if full else "●",
        )


def overview(seconds: float = LOOK) -> SystemView:
    """This process, its children (the servers that were started) and the machine.

    Args:
        seconds: how long to look at the processors: their use is a share of a time. Waits for that long; call it
            from a cell, not from a request.
    """
    me = psutil.Process()
    found = [me, *me.children(recursive=True)]
    before = psutil.cpu_times()
    spent = [_seconds(process) for process in found]
    began = time.monotonic()
    time.sleep(seconds)
    took = max(time.monotonic() - began, 1e-9)
    rows = []
    for process, first in zip(found, spent, strict=True):
        with suppress(psutil.Error), process.oneshot():
            used = 100 * max(0.0, _seconds(process) - first) / took
            size = process.memory_info().rss / 2**20
            age = max(0.0, time.time() - process.create_time())
            rows.append([process.pid, process.name(), used, size, process.num_threads(), age])
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    load = psutil.getloadavg()[0] if hasattr(psutil, "getloadavg") else None
    columns = ["pid", "name", "cpu_percent", "memory_mb", "threads", "running_s"]
    return SystemView(
        df=pd.DataFrame(rows, columns=columns),
        cpus=psutil.cpu_count() or 1,
        cpu_percent=_use(before, psutil.cpu_times()),
        memory_percent=memory.percent,
        memory_bytes=memory.total,
        disk_percent=disk.percent,
        disk_bytes=disk.total,
        load=load,
    )


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def _use(before: Any, after: Any) -> float:
    """Percent of the processors' time between two looks that was not idle."""
    names = [name for name in before._fields if not name.startswith("guest")]
    spent = {name: getattr(after, name) - getattr(before, name) for name in names}
    idle = spent["idle"] + spent.get("iowait", 0.0)
    total = sum(spent.values())
    return 100 * max(0.0, 1 - idle / total) if total > 0 else 0.0
