"""Children that end with us. The parent is a Python of its own, so that it can be killed with -9."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from labkit.errors import ServiceError
from labkit.services import _guard, folders, ports, watchdog

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no servers from wheels there")

SLEEP = ["/bin/sleep", "600"]


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    row = _guard.look(pid)
    return row is None or row[3] in "ZX"


def state(pid: int) -> str:
    row = _guard.look(pid)
    return row[3] if row else "-"


@contextmanager
def python(code: str) -> Iterator[subprocess.Popen[str]]:
    """A Python in a group of its own that runs ``code`` and may be ended in any way."""
    words = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    with subprocess.Popen(words, stdin=-1, stdout=-1, text=True, start_new_session=True) as child:
        try:
            yield child
        finally:
            if child.returncode is None:  # not reaped: the number is still its own
                os.killpg(child.pid, signal.SIGKILL)


PARENT = """
    import signal, sys, threading, time
    from pathlib import Path
    from labkit.services import folders, watchdog
    home = folders.temporary()
    process = watchdog.Process("sleep", log=home / "log", folder=home)
    process.run(["/bin/sh", "-c", "sleep 600 & wait"])
    {more}
    time.sleep(0.05)
    print(process.pid, process._state.guard.pid, home, flush=True)
    sys.stdin.readline()
"""


def facts(parent: subprocess.Popen[str]) -> tuple[int, int, Path]:
    assert parent.stdout is not None
    pid, guard, home = parent.stdout.readline().split()
    return int(pid), int(guard), Path(home)


@pytest.mark.parametrize(
    "more",
    [
        "",
        "process.freeze()",
        "[threading.Thread(target=time.sleep, args=(600,), daemon=True).start() for _ in range(40)]",
        # started by a thread that has ended since: its end is not the parent's
        "t = threading.Thread(target=process.run, args=(['/bin/sleep', '600'],)); t.start(); t.join()",
        # a fork keeps the pipe open: the watchdog must not wait for it
        "import os; os.fork() or (time.sleep(60), os._exit(0))",
    ],
    ids=["plain", "frozen", "many threads", "from a thread", "pipe held by a fork"],
)
def test_a_killed_parent_leaves_no_child_no_watchdog_and_no_folder(more: str) -> None:
    with python(PARENT.format(more=more)) as parent:
        pid, guard, home = facts(parent)
        family = [row[0] for row in _guard.tree(pid)]
        assert family and home.is_dir() and not gone(guard)
        os.kill(parent.pid, signal.SIGKILL)
        wait_until(lambda: all(map(gone, [*family, guard])) and not home.exists())


def test_a_parent_that_ends_by_itself_leaves_nothing_either() -> None:
    with python(PARENT.format(more="")) as parent:
        pid, guard, home = facts(parent)
        parent.communicate("go on\n", timeout=20)
        assert parent.returncode == 0
        assert gone(pid) and gone(guard) and not home.exists()


@pytest.mark.parametrize("moment", [0.0, 0.004, 0.02])
def test_a_parent_killed_while_it_starts_the_child_leaves_nothing(tmp_path: Path, moment: float) -> None:
    code = f"""
        import sys, tempfile
        from pathlib import Path
        from labkit.services import redis, folders
        folders.temporary = lambda: Path(tempfile.mkdtemp(dir={str(tmp_path)!r}))
        print("now", flush=True)
        redis.start()
        sys.stdin.readline()
    """
    with python(code) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        time.sleep(moment)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()

    def at_home() -> list[int]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.cwd().startswith(str(tmp_path)):
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    # The folder may stay if the kill came before there was a watchdog; a process may not.
    wait_until(lambda: not at_home())


def test_the_child_waits_until_the_watchdog_knows_it(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    orphan = subprocess.Popen([*watchdog._GATE, "/bin/sh", "-c", f"touch {ran}"], stdin=subprocess.PIPE)
    assert orphan.stdin is not None
    orphan.stdin.close()  # as when its parent dies before it hands over the number
    assert orphan.wait(10) != 0
    assert not ran.exists()


def test_an_interrupt_of_our_group_does_not_reach_the_child() -> None:
    code = """
        import sys, time
        from pathlib import Path
        from labkit.services import folders, watchdog
        home = folders.temporary()
        with watchdog.Process("sleep", log=home / "log", folder=home) as process:
            process.run(["/bin/sleep", "600"])
            try:
                print("ready", flush=True)
                time.sleep(60)
            except KeyboardInterrupt:
                time.sleep(0.2)  # time to die for whom the signal reached
                guard = process._state.guard.poll()
                print(process.alive, guard, flush=True)
    """
    with python(code) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stdout.readline().split() == ["True", "None"]


def test_it_can_be_frozen_thawed_killed_and_run_again(tmp_path: Path) -> None:
    with watchdog.spawn(["/bin/sh", "-c", "sleep 600 & wait"], log=tmp_path / "log") as process:
        wait_until(lambda: len(_guard.tree(process.pid)) == 2)
        family = [row[0] for row in _guard.tree(process.pid)]
        process.freeze()
        assert [state(pid) for pid in family] == ["T", "T"]
        process.thaw()
        wait_until(lambda: [state(pid) for pid in family] == ["S", "S"])
        process.freeze()
        process.kill()  # frozen or not
        assert all(map(gone, family)) and not process.alive
        process.kill()
        process.run(SLEEP)
        assert process.alive and process.pid not in family
    assert not process.alive


def test_nothing_is_left_after_a_normal_end(tmp_path: Path) -> None:
    me = psutil.Process()
    children, files = {child.pid for child in me.children()}, me.num_fds()
    for _ in range(3):
        home = folders.temporary()
        process = watchdog.Process("sleep", log=home / "log", folder=home)
        process.run(SLEEP)
        process.run(SLEEP)  # replaces the first
        process.stop()
        process.stop()
        assert not home.exists()
    assert {child.pid for child in me.children()} == children  # no zombie either
    assert me.num_fds() == files


def test_a_process_that_is_forgotten_ends(tmp_path: Path) -> None:
    process = watchdog.spawn(SLEEP, log=tmp_path / "log")
    pid = process.pid
    del process
    gc.collect()
    assert gone(pid)


def test_a_fork_of_us_neither_ends_our_child_nor_releases_it() -> None:
    fork = """
        import os
        fork = os.fork()
        if fork == 0:
            process.poll()
            sys.exit()  # runs the exit functions, unlike os._exit
        os.waitpid(fork, 0)
    """
    more = textwrap.dedent(fork).replace("\n", "\n    ")
    with python(PARENT.format(more=more)) as parent:
        pid, guard, home = facts(parent)
        time.sleep(0.2)  # time to end for whom the fork has told to
        assert not gone(pid) and not gone(guard) and home.is_dir()
        os.kill(parent.pid, signal.SIGKILL)
        wait_until(lambda: gone(pid) and gone(guard) and not home.exists())


def test_a_lost_watchdog_does_not_keep_the_child_alive(tmp_path: Path) -> None:
    process = watchdog.spawn(SLEEP, log=tmp_path / "log")
    guard = process._state.guard
    guard.kill()
    guard.wait()
    process.stop()
    assert not process.alive


def test_a_child_that_ends_is_reaped_and_no_longer_signalled(tmp_path: Path) -> None:
    with watchdog.spawn(["/bin/sh", "-c", "echo the reason; exit 3"], log=tmp_path / "log") as process:
        wait_until(lambda: not process.alive)
        assert process.poll() == 3
        assert _guard.look(process.pid) is None  # no zombie
        for act in (process.freeze, process.thaw, process.check):
            with pytest.raises(ServiceError, match=r"\(3\).*the reason"):
                act()
        process.kill()


def test_a_child_that_catches_the_gentle_signal_has_time_and_no_more(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = watchdog.Process("sh", log=log, patience=0.2)
    process.run(["/bin/sh", "-c", "trap 'echo asked' TERM; while :; do sleep 0.05; done"])
    wait_until(lambda: len(_guard.tree(process.pid)) == 2)
    process.stop()
    assert "asked" in log.read_text()
    assert process.poll() == -signal.SIGKILL


def test_what_never_answers_is_named_with_its_last_line(tmp_path: Path) -> None:
    argv = ["/bin/sh", "-c", "echo half way; kill -STOP $$"]
    with (
        watchdog.spawn(argv, log=tmp_path / "log") as process,
        pytest.raises(ServiceError, match="half way"),
    ):
        process.until(lambda: False, seconds=0.3)


def test_what_ends_instead_of_answering_is_named_with_its_last_line(tmp_path: Path) -> None:
    with (
        watchdog.spawn(["/bin/sh", "-c", "echo FATAL: no; echo bye; kill -9 $$"], log=tmp_path / "l") as process,
        pytest.raises(ServiceError, match=r"SIGKILL.*FATAL: no"),
    ):
        process.until(lambda: False)


def test_a_missing_program_and_a_stopped_place_say_so(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="/no/such/server"):
        watchdog.spawn(["/no/such/server"], log=tmp_path / "log")
    with watchdog.spawn(SLEEP, log=tmp_path / "log") as process:
        pass
    with pytest.raises(ServiceError, match="stop"):
        process.run(SLEEP)


def test_the_environment_and_the_folder_reach_the_child(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = ["/bin/sh", "-c", 'echo "$WORD in $(pwd)"']
    with watchdog.spawn(argv, log=log, env={"WORD": "hello"}, cwd=tmp_path) as process:
        wait_until(lambda: not process.alive)
        assert process.last_line() == f"hello in {tmp_path.resolve()}"


def test_a_port_that_was_taken_meanwhile_is_replaced() -> None:
    tried: list[int] = []

    def start(port: int) -> None:
        tried.append(port)
        if len(tried) < 3:
            raise ServiceError("taken")

    assert ports.claim(start, raced=lambda: True) == tried[2]
    with pytest.raises(ServiceError, match="taken"):
        tried.clear()
        ports.claim(start, raced=lambda: False)
    assert len(tried) == 1
    with pytest.raises(ServiceError, match="taken"):
        ports.claim(start, raced=lambda: True, tries=1)
