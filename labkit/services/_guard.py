"""The watchdog's own program: waits on a pipe, and ends one process tree when the other end is gone.

``watchdog.py`` runs this file as a script, with ``python -I -S``, once for each server. It knows the standard
library only, and of that only what starts fast. ``watchdog.py`` also imports it for its process functions.

On its standard input come lines: a process id ("this one is yours", 0 for none) or ``end``. The end of the
file, as after ``kill -9`` of the parent, means the same as ``end``.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

Row = tuple[int, int, int, str, str]  # process id, parent, group, state (one letter), time of birth

_STOPPED, _DEAD = "Tt", "ZX"


def look(pid: int) -> Row | None:
    """The process ``pid`` as the system sees it now, or None."""
    if not os.path.isdir("/proc/self"):  # noqa: PTH112 - pathlib would double the time to start
        return _ask_ps("-p", str(pid)).get(pid)
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return pid, int(fields[1]), int(fields[2]), fields[0], fields[19]


def table() -> dict[int, Row]:
    """Every process that we may see."""
    if not os.path.isdir("/proc/self"):  # noqa: PTH112
        return _ask_ps("-A")
    rows = (look(int(name)) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208
    return {row[0]: row for row in rows if row}


def _ask_ps(*which: str) -> dict[int, Row]:
    import subprocess  # macOS only

    words = ["ps", *which, "-o", "pid=,ppid=,pgid=,state=,lstart="]
    lines = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    fields = [line.split(None, 4) for line in lines]
    return {int(f[0]): (int(f[0]), int(f[1]), int(f[2]), f[3][0], f[4]) for f in fields}


def tree(pid: int) -> list[Row]:
    """The process ``pid`` first, then all that descend from it or stay in its group.

    PostgreSQL puts each of its processes into a session of its own, so that the group alone would miss them.
    """
    rows = table()
    if pid not in rows:
        return []
    found = [rows.pop(pid)]
    for parent in found:  # grows while we walk
        found += [rows.pop(row[0]) for row in list(rows.values()) if row[1] == parent[0] or row[2] == pid]
    return found


def gone(row: Row) -> bool:
    """Whether that very process has ended: its number may be free, a zombie's, or another process' by now."""
    now = look(row[0])
    return now is None or now[3] in _DEAD or now[4] != row[4]


def stopped(pid: int) -> bool:
    """Whether the process is there and stopped."""
    now = look(pid)
    return now is not None and now[3] in _STOPPED


def send(row: Row, number: int) -> None:
    """Send a signal to that very process, if it is still there."""
    if not gone(row):
        try:  # contextlib would be one more import
            os.kill(row[0], number)
        except ProcessLookupError:
            return


def freeze(pid: int, patience: float = 2.0) -> None:
    """Stop a whole tree, and return when it stands still (or after ``patience`` seconds)."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        moving = [row for row in tree(pid) if row[3] not in _STOPPED + _DEAD]
        if not moving:
            return
        for row in moving:
            send(row, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """Let a stopped tree go on."""
    for row in tree(pid):
        send(row, signal.SIGCONT)


def end(pid: int, ending: int, patience: float) -> None:
    """End a tree: ``ending`` to its root, ``patience`` seconds later SIGKILL to whoever is left.

    A frozen tree is thawed first, since it could not act on anything but SIGKILL.
    """
    rows = tree(pid)
    if not rows:
        return
    if ending != signal.SIGKILL:
        for row in rows:
            send(row, signal.SIGCONT)
        send(rows[0], ending)
        _wait(rows[:1], patience)
    for row in rows:
        send(row, signal.SIGKILL)
    _wait(rows, 5.0)


def _wait(rows: list[Row], patience: float) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and not all(gone(row) for row in rows):
        time.sleep(0.003)


def main(parent: int, ending: int, patience: float, folder: str) -> None:
    """Wait for the end of ``parent``, then end the process it named last and remove ``folder``, if any."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    charge, rest = 0, b""
    while True:
        # The pipe tells at once; but a fork of the parent may hold its other end: hence the look each second.
        if not select.select([0], [], [], 1.0)[0]:
            if os.getppid() == parent:
                continue
            break
        data = os.read(0, 4096)
        *lines, rest = (rest + data).split(b"\n")
        if numbers := [line for line in lines if line != b"end"]:
            charge = int(numbers[-1])
        if not data or b"end" in lines:
            break
    if charge:
        end(charge, ending, patience)
    if folder:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
