"""One picture in a notebook that changes while a cell runs, drawn in a process of its own.

Drawn by a thread, a picture a second raised the p95 that it shows to four times its value: matplotlib and the
application that is being measured took turns at Python's lock.
"""

from __future__ import annotations

import base64
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from types import TracebackType
from typing import Any, Self

from labkit import settings
from labkit._html import tag
from labkit._text import say

PAUSE = 1.0  # seconds between two pictures
_GONE = (OSError, EOFError, pickle.UnpicklingError)  # without the child a picture only stays as it is


class Screen:
    """Shows a picture while its ``with`` lasts, always in one place; outside of a notebook it shows nothing.

    Args:
        state: what the picture shows: an array for ``Canvas.draw``, and the title.
    """

    def __init__(self, state: Callable[[], tuple[Any, str]]) -> None:
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython is not None else None
        self._display: Any = ipython.display.display if ipython and hasattr(shell, "kernel") else None
        self._handle: Any = None
        self._state, self._over = state, threading.Event()

    def __enter__(self) -> Self:
        if self._display is None:
            return self
        # It finds labkit where we do, and ends with its input: it does not outlive us, whatever ends us.
        self._child: Any = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folder for folder in sys.path if folder)},
        )
        # In the caller's context, by which a notebook knows the cell that the picture belongs to.
        target = copy_context().run
        self._thread = threading.Thread(target=target, args=(self._refresh,), name="labkit screen", daemon=True)
        try:
            with suppress(*_GONE):
                self._frame()  # waited for: what the child has to import it imports before the load begins
            self._thread.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._over.set()
            self._child.kill()
            self._thread.join()
            self._end()

    def _end(self) -> None:
        self._child.kill()
        with suppress(OSError), self._child:  # closes the pipes and waits
            pass

    def show(self, data: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Show something in the place of the picture."""
        if self._display is None:
            return
        if self._handle is None:
            self._handle = self._display(data, metadata=metadata, raw=True, display_id=True)
        else:
            self._handle.update(data, metadata=metadata, raw=True)

    def _refresh(self) -> None:
        with suppress(*_GONE):
            while not self._over.wait(PAUSE):
                self._frame()

    def _frame(self) -> None:
        seen, title = self._state()
        pickle.dump((settings.language(), seen, title), self._child.stdin)
        self._child.stdin.flush()
        picture, width, height = pickle.load(self._child.stdout)
        # Its size is known before it is decoded: what stands below does not jump.
        attributes = {"width": width, "height": height, "alt": say("watch.panel_alt", says=title), "decoding": "sync"}
        source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        image = tag("img", "", "max-width:100%;height:auto;border-radius:4px", src=source, **attributes)
        self.show({"text/plain": title, "text/html": image.removesuffix("</img>")}, {})


def paint() -> None:
    """What the child does: draw what it is told until its input ends."""
    if hasattr(os, "nice"):
        os.nice(10)
    from labkit.monitoring._charts import Canvas  # here: it takes a second, which others need more

    canvas = Canvas()
    with suppress(*_GONE):
        while True:
            language, seen, title = pickle.load(sys.stdin.buffer)
            settings.set_language(language)
            pickle.dump(canvas.draw(seen, title), sys.stdout.buffer)
            sys.stdout.flush()


if __name__ == "__main__":
    paint()
