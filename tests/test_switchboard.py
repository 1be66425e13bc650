"""The buttons that break Redis: in a kernel while a cell sleeps, and as a plain card where there are none."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from labkit import Lab, _broken, _outages, settings
from labkit.errors import ServiceError
from labkit.services import redis as services
from labkit.switchboard import Switchboard
from tests.outages import app, the_lab  # noqa: F401 (the fixture)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
VIEW = "application/vnd.jupyter.widget-view+json"


def wait_until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_it_tells_the_state_of_the_server_and_not_what_was_asked_for(lab: Lab) -> None:
    board = lab.switchboard()
    assert lab.switchboard() is board
    assert isinstance(lab.redis, services.RedisServer)
    assert board.lines[0][0] == "●" and "responde" in repr(board)
    with lab.fault("redis_slow", ms=7.5):
        assert board.lines[0][0] == "▲" and "7,5 ms" in repr(board)
    lab.redis.freeze()
    assert board.lines[0][0] == "✗" and "congelado" in repr(board)
    lab.redis.thaw()
    lab.redis.kill()
    assert "apagado" in repr(board)
    lab.redis.restart()
    assert "responde" in repr(board)
    assert ("(simulado)" in repr(board)) == lab.redis.fake


def test_it_switches_on_and_off_and_twice_is_once(lab: Lab) -> None:
    board = lab.switchboard()
    assert isinstance(lab.redis, services.RedisServer)
    for on in (True, True):
        board.switch("redis_down", on)
        assert not lab.redis.alive
    with lab.fault("redis_down"):
        for on in (False, False):
            board.switch("redis_down", on)
            assert not lab.redis.alive, "the block still wants it so"
    assert lab.redis.alive


def test_a_button_never_raises(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    board = lab.switchboard()
    with monkeypatch.context() as patch:

        def refuse(self: services.RedisServer) -> None:
            raise ServiceError("no puedo <congelar>")

        patch.setattr(type(lab.redis), "freeze", refuse)
        board.switch("redis_frozen", True)
    assert "no puedo <congelar>" in repr(board) and "no puedo &lt;congelar&gt;" in board._repr_html_()
    board.switch("redis_frozen", True)
    assert "no puedo" not in repr(board) and "congelado" in repr(board)


def test_it_tells_what_the_breaker_does(lab: Lab) -> None:
    breaker = SimpleNamespace(state="closed")
    lab.app.state.cache = SimpleNamespace(breaker=breaker)  # type: ignore[union-attr]
    seen = {}
    for state in ("closed", "half_open", "open", "of another kind"):
        breaker.state = state
        seen[state] = lab.switchboard().lines[1:]
    assert [[symbol for symbol, _ in lines] for lines in seen.values()] == [["●"], ["▲"], ["✗"], []]
    assert "cerrado" in seen["closed"][0][1] and "abierto" in seen["open"][0][1]


@pytest.mark.parametrize("name", [*_broken.Redis.names, *_broken.Database.names, *_broken.Disk.names])
def test_the_buttons_say_which_fault(name: str) -> None:
    says = {}
    for lang in settings.LANGUAGES:
        settings.set_language(lang)
        says[lang] = _outages.label(name)
    assert says["es"] != says["en"] and all(says.values())


def test_without_a_redis_of_its_own_it_says_so() -> None:
    with Lab(app(), redis=False) as lab:
        board = lab.switchboard()
        assert not board.usable and "REDIS_URL" in repr(board) and "REDIS_URL" in board._repr_html_()
        assert [symbol for symbol, _ in board.lines] == ["▲"] * 3, "Redis, database and disk"
        board.switch("redis_down", True)
        assert board.lines[-1][0] == "✗"


def test_of_a_closed_lab_it_says_so() -> None:
    lab = Lab(app())
    board = lab.switchboard()
    board.switch("redis_frozen", True)
    lab.close()
    assert not board.usable and "cerrado" in repr(board)
    board.switch("redis_frozen", False)


def test_outside_of_a_notebook_it_is_a_card(lab: Lab) -> None:
    bundle = lab.switchboard()._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert "Fallas a propósito" in bundle["text/html"] and "<script" not in bundle["text/html"]


def test_orders_are_carried_out_in_a_thread_and_failures_spring_back(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The widgets without a kernel: what a page would see."""
    monkeypatch.setattr("labkit.switchboard.LOOK", 0.02)
    monkeypatch.setattr("labkit.switchboard.SNAPSHOT", 0.05)
    board = Switchboard(lab._outages, lab.app)
    panel = board._show()
    assert board._show() is panel
    assert isinstance(lab.redis, services.RedisServer)
    down, frozen, *_ = panel.children[0].children
    text = panel.children[1]
    assert [button.disabled for button in panel.children[0].children] == [False] * 3 + [True] * 3
    down.value = True
    wait_until(lambda: "apagado" in text.value and down.button_style == "danger")
    assert not lab.redis.alive
    down.value = False
    wait_until(lambda: "responde" in text.value and down.button_style == "")
    with monkeypatch.context() as patch:
        patch.setattr(type(lab.redis), "freeze", lambda self: 1 / 0)
        frozen.value = True
        wait_until(lambda: "division" in text.value and not frozen.value)
    lab.close()
    wait_until(lambda: "cerrado" in text.value and down.disabled)


class Kernel:
    """A kernel with a second shell, as JupyterLab has it for widgets."""

    def __init__(self) -> None:
        paths = os.pathsep.join(sys.path)
        environment = {**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONPATH": paths}
        self.client: BlockingKernelClient
        self.manager, self.client = start_new_kernel(kernel_name="python3", env=environment)
        self.widgets: dict[str, str] = {}  # what a button is called, and its identity
        self.texts: list[str] = []
        asked = self.client.session.msg("create_subshell_request")
        self.client.control_channel.send(asked)
        while (reply := self.client.get_control_msg(timeout=30))["msg_type"] != "create_subshell_reply":
            pass
        self.shell = reply["content"]["subshell_id"]

    def run(self, cell: str, press: tuple[str, bool] | None = None) -> dict[str, Any]:
        """Run a cell, and press a button as soon as it says ``begun``."""
        shown: dict[str, Any] = {"text": "", "bundle": {}}
        asked = self.client.execute(textwrap.dedent(cell))
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            kind, content = message["msg_type"], message["content"]
            mine = message["parent_header"].get("msg_id") == asked
            if kind == "stream" and mine:
                shown["text"] += content["text"]
                if press and "begun" in shown["text"]:
                    self.press(*press)
                    press = None
            elif kind == "error":
                shown["text"] += "\n".join(content["traceback"])
            elif kind in ("execute_result", "display_data"):
                shown["bundle"] = content["data"]
            elif kind == "comm_open" and "description" in (state := content["data"]["state"]):
                self.widgets[state["description"]] = content["comm_id"]
            elif kind == "comm_msg" and "value" in (state := content["data"].get("state", {})):
                self.texts.append(str(state["value"]))
            elif kind == "status" and content["execution_state"] == "idle" and mine:
                return shown

    def press(self, name: str, on: bool) -> None:
        data = {"method": "update", "state": {"value": on}, "buffer_paths": []}
        message = self.client.session.msg("comm_msg", {"comm_id": self.widgets[name], "data": data})
        message["header"]["subshell_id"] = self.shell
        self.client.shell_channel.send(message)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    try:
        yield kernel
    finally:
        kernel.client.stop_channels()
        kernel.manager.shutdown_kernel(now=True)


WAIT = """
    import time
    print("begun", flush=True)
    deadline = time.monotonic() + 20
    while lab.redis.alive is {alive} and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    print("alive", lab.redis.alive)
"""


def test_the_buttons_work_while_a_cell_sleeps(kernel: Kernel) -> None:
    shown = kernel.run("""
        from fastapi import FastAPI
        from labkit import Lab
        app = FastAPI()
        app.state.redis_url = None
        lab = Lab(app)
        lab.switchboard()
    """)
    assert {VIEW, "text/html", "text/plain"} <= set(shown["bundle"]), shown["text"]
    assert len([name for name in kernel.widgets if name.startswith("Redis")]) == 3
    assert "alive False" in kernel.run(WAIT.format(alive=True), ("Redis apagado", True))["text"]
    assert any("apagado" in text for text in kernel.texts), "the page is told while the cell sleeps"
    assert "alive True" in kernel.run(WAIT.format(alive=False), ("Redis apagado", False))["text"]
    assert "cerrado" in kernel.run("lab.close(); print(lab.switchboard())")["text"]


def test_an_exported_page_shows_the_card(lab: Lab) -> None:
    """Where the state of widgets was not saved, nbconvert takes the HTML; with it the page would ask the network."""
    import warnings

    with warnings.catch_warnings():  # bleach, which nbconvert imports, warns of itself
        warnings.simplefilter("ignore")
        import nbconvert
    bundle = {**lab.switchboard()._repr_mimebundle_(), VIEW: {"model_id": "x", "version_major": 2, "version_minor": 0}}
    output = nbformat.v4.new_output("display_data", bundle)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("lab.switchboard()", outputs=[output])])
    page, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
    assert "Fallas a propósito" in page and "model_id" not in page
