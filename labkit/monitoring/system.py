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
from typing import TYPE_CHECKING, Any

import psutil
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from labkit._html import Safe, card, table
from labkit._text import number, say

if TYPE_CHECKING:
    import pandas as pd

LOOK = 0.2  # seconds that `overview` looks at the processors
FULL = 0.9  # share of memory or disk from which the course speaks of degraded
_STATUSES = ("running", "sleeping", "stopped", "zombie")  # those that have a word of ours; the others keep psutil's


def workers(alive: bool = True) -> list[int]:
    """The process ids that have written to PROMETHEUS_MULTIPROC_DIR: those that live, or those that are gone."""
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    pids = {int(pid) for file in folder.glob("*.db") if (pid := file.stem.rpartition("_")[2]).isdigit()}
    return sorted(pid for pid in pids if psutil.pid_exists(pid) == alive)


class SystemCollector:
    """Processes and machine, looked up at each scrape. Never waits: the processors' time is exported as counters.

    So nobody has to call anything now and then, as the course's ``update_system_metrics`` has it: a figure that is set
    by a timer is as old as the timer's last turn, and this one is as old as the scrape.

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
        for mode, seconds in _modes(psutil.cpu_times()):
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


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SystemView:
    """Processes and machine at one moment.

    Attributes:
        df: one row a process, this one first and then its children: ``pid``, ``name``, ``status`` (psutil's word:
            ``running``, ``sleeping``, ``stopped`` ...), ``cpu`` (share of one processor while we looked),
            ``memory_mb``, ``threads``, ``running_s``.
        cpus: processors of the machine.
        cpu, memory, disk: how much of them is in use, from 0 to 1.
        memory_gb, disk_gb: how big they are, in 2**30 bytes.
        load: processes that wanted a processor, on average over the last minute; None where the system does not say.
    """

    df: pd.DataFrame
    cpus: int
    cpu: float
    memory: float
    memory_gb: float
    disk: float
    disk_gb: float
    load: float | None

    @property
    def _machine(self) -> str:
        values = {name: getattr(self, name) for name in ("cpus", "cpu", "memory", "memory_gb", "disk", "disk_gb")}
        load = "" if self.load is None else say("metrics.load", load=self.load)
        return say("metrics.machine", **values) + load

    def _rows(self) -> list[list[str]]:
        return [
            [
                str(pid),
                name,
                _word(status),
                number(cpu, ".0%"),
                number(mb, ",.0f"),
                number(threads),
                number(age, ",.0f"),
            ]
            for pid, name, status, cpu, mb, threads, age in self.df.itertuples(index=False)
        ]

    @property
    def _header(self) -> list[str]:
        return [say(f"metrics.column_{name}") for name in self.df.columns]

    def __repr__(self) -> str:
        import pandas as pd

        rows = pd.DataFrame(self._rows(), columns=self._header)
        return f"{self._machine}\n{rows.to_string(index=False)}"

    def _repr_html_(self) -> Safe:
        from labkit import plots

        full = max(self.memory, self.disk) > FULL
        return card(
            self._machine,
            table(self._header, self._rows(), numeric=(0, 3, 4, 5, 6)),
            colour=plots.VERMILION if full else plots.BLUE,
            symbol="▲" if full else "●",
            note=say("metrics.processes"),
        )


def overview(seconds: float = LOOK) -> SystemView:
    """This process, its children (the servers that were started) and the machine.

    Args:
        seconds: how long to look at the processors, for their use is a share of a time. The caller waits for that
            long: ask from a cell, not from a request.
    """
    import pandas as pd

    me = psutil.Process()
    found = [me, *me.children(recursive=True)]
    before, spent, began = psutil.cpu_times(), [_seconds(process) for process in found], time.monotonic()
    time.sleep(seconds)
    after, took = psutil.cpu_times(), time.monotonic() - began
    rows = []
    for process, first in zip(found, spent, strict=True):
        with suppress(psutil.Error), process.oneshot():  # it may have ended by now
            cpu = max(0.0, _seconds(process) - first) / took
            size, age = process.memory_info().rss / 2**20, max(0.0, time.time() - process.create_time())
            rows.append([process.pid, process.name(), process.status(), cpu, size, process.num_threads(), age])
    memory, disk = psutil.virtual_memory(), psutil.disk_usage("/")
    return SystemView(
        df=pd.DataFrame(rows, columns=["pid", "name", "status", "cpu", "memory_mb", "threads", "running_s"]),
        cpus=psutil.cpu_count() or 1,
        cpu=_use(before, after),
        memory=memory.percent / 100,
        memory_gb=memory.total / 2**30,
        disk=disk.percent / 100,
        disk_gb=disk.total / 2**30,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # psutil's needs minutes on Windows
    )


def _word(status: str) -> str:
    return say(f"metrics.{status}") if status in _STATUSES else status


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return times.user + times.system


def _use(before: Any, after: Any) -> float:
    """Share of the processors' time between two looks that was not idle."""
    spent = {mode: seconds - getattr(before, mode) for mode, seconds in _modes(after)}
    idle, total = spent["idle"] + spent.get("iowait", 0.0), sum(spent.values())
    return min(1.0, max(0.0, 1 - idle / total)) if total > 0 else 0.0


def _modes(times: Any) -> list[tuple[str, float]]:
    """What the processors did, in seconds; a guest's time is contained in ``user`` and ``nice``."""
    return [(mode, seconds) for mode, seconds in times._asdict().items() if not mode.startswith("guest")]
