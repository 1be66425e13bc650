"""A notebook in a real JupyterLab in Chromium, used as a person does: opened by its address, run by the menu.

What a cell did is read from the notebook's model, not from the page: there a warning looks like a traceback
and a cell that was never reached looks like one that has not started.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from playwright.sync_api import Locator, Page, Route, sync_playwright

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTH, HEIGHT = 1280, 1000

_CODE_CELLS = """() => {
  const model = window.jupyterapp.shell.currentWidget.content.model;
  return [...model.cells].filter(cell => cell.type === 'code').map(cell => cell.toJSON());
}"""
_STATUS = "() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status"
_TOO_WIDE = """node => [...node.querySelectorAll('.jp-OutputArea-output, .jp-InputArea .cm-scroller')]
  .some(part => part.scrollWidth > part.clientWidth + 2)"""


@dataclass
class Browser:
    """A page of Chromium that reaches loopback alone; what it asked for elsewhere, its complaints."""

    page: Page
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def guard(self, route: Route) -> None:
        host = urlsplit(route.request.url).hostname
        if host in ("127.0.0.1", "localhost"):
            route.continue_()
        else:
            self.outside.append(route.request.url)
            route.abort()


@contextmanager
def open_browser(program: str) -> Iterator[Browser]:
    """A fresh Chromium with an empty profile."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            context = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT}, locale="es")
            browser = Browser(context.new_page())
            context.route(lambda url: url.startswith(("http:", "https:", "ws:")), browser.guard)
            browser.page.on("pageerror", lambda error: browser.complaints.append(str(error)))
            yield browser
            context.close()
        finally:
            chromium.close()


def prepare(work: Path, theme: str = "JupyterLab Light") -> None:
    """Before the start: let the page show its model to the test, draw every cell, and choose the theme."""
    home = work / ".jupyter"
    settings = home / "lab/user-settings/@jupyterlab"
    for path, body in {
        home / "jupyter_lab_config.json": {"LabApp": {"expose_app_in_browser": True}},
        settings / "notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
        settings / "apputils-extension/themes.jupyterlab-settings": {"theme": theme},
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body), encoding="utf-8")


class Notebook:
    """Page object of one notebook.

    Args:
        browser: where it is opened.
        address: what the launcher printed.
        path: the notebook, relative to the served folder.
    """

    def __init__(self, browser: Browser, address: str, path: str) -> None:
        self.browser, self.page = browser, browser.page
        parts = urlsplit(address)
        self.page.goto(f"{parts.scheme}://{parts.netloc}/lab/tree/{quote(path)}?reset&{parts.query}")
        self.panel = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        self.panel.locator(".jp-Cell").first.wait_for(timeout=60_000)
        self._until(lambda: self.page.evaluate(_STATUS) == "idle", 60, "the kernel did not start")

    def run_all(self, seconds: float) -> None:
        """Run > Run All Cells, and wait until every code cell with text has run or an error ended the run."""
        self.page.locator(".lm-MenuBar-item", has_text="Run").first.click()
        self.page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()
        self._until(self._at_rest, seconds, "cells still run")

    def _at_rest(self) -> bool:
        """Nothing runs, and whatever did not run never will, because of an error before it."""
        return self.page.evaluate(_STATUS) == "idle" and (not self.unrun() or bool(self.outputs("error")))

    def _until(self, done: Any, seconds: float, otherwise: str) -> None:
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                raise AssertionError(f"{otherwise} after {seconds} s: {self.unrun()}")
            self.page.wait_for_timeout(150)

    def code_cells(self) -> list[dict[str, Any]]:
        cells: list[dict[str, Any]] = self.page.evaluate(_CODE_CELLS)
        return cells

    def unrun(self) -> list[str]:
        """Ids of the code cells with text that have no number."""
        return [
            cell["id"] for cell in self.code_cells() if "".join(cell["source"]).strip() and not cell["execution_count"]
        ]

    def outputs(self, kind: str) -> list[str]:
        """``"cell: text"`` of every output of a kind: ``"error"``, or a stream's name."""
        found = []
        for cell in self.code_cells():
            for output in cell["outputs"]:
                if output["output_type"] == "error" and kind == "error":
                    found.append(f"{cell['id']}: {output['ename']}: {output['evalue']}")
                elif output.get("name") == kind:
                    found.append(f"{cell['id']}: {''.join(output['text'])}")
        return found

    def cells(self) -> list[tuple[str, Locator]]:
        """Every cell on the page with its id, in order."""
        ids: list[str] = self.page.evaluate(
            "() => [...window.jupyterapp.shell.currentWidget.content.model.cells].map(cell => cell.id)"
        )
        return list(zip(ids, self.panel.locator(".jp-Notebook .jp-Cell").all(), strict=True))

    def too_wide(self) -> list[str]:
        """Ids of the cells whose code or output must be scrolled sideways."""
        return [name for name, cell in self.cells() if cell.evaluate(_TOO_WIDE)]

    def shoot(self, folder: Path) -> None:
        """A picture of every cell, numbered, and of the first screen; each cell whole, however tall."""
        folder.mkdir(parents=True, exist_ok=True)
        self.page.evaluate("() => document.activeElement?.blur()")
        self.cells()[0][1].scroll_into_view_if_needed()
        self.page.screenshot(path=folder / "screen.png")
        for number, (name, cell) in enumerate(self.cells()):
            box = cell.bounding_box()
            tall = int(box["height"]) + 300 if box else HEIGHT
            self.page.set_viewport_size({"width": WIDTH, "height": max(HEIGHT, tall)})
            cell.scroll_into_view_if_needed()
            cell.screenshot(path=folder / f"{number:02}-{name}.png")
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
