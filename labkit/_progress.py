"""How far some work is: a bar in a notebook, a line in a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from labkit._html import tag


class Bar:
    """Shows how much is done, in one place that it writes over; nothing where nobody looks (``shown`` is False).

    Args:
        says: the text for what is done and the total.
    """

    def __init__(self, says: Callable[[int, int], str]) -> None:
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython is not None else None
        self._says, self._handle, self._begun = says, None, False
        self._display: Any = ipython.display.display if ipython and hasattr(shell, "kernel") else None
        self.shown = self._display is not None or sys.stderr.isatty()

    def __call__(self, done: int, total: int) -> None:
        """Show that so much is done."""
        if not self.shown:
            return
        says, part = self._says(done, total), done / total if total else 1.0
        if self._display is None:
            sys.stderr.write(f"\r{says}\x1b[K" + ("\n" if done >= total else ""))
            sys.stderr.flush()
        else:
            bar = f'<progress style="vertical-align:middle" value="{part:.3f}" max="1"></progress>'
            label = tag("label", says, "font-size:13px;vertical-align:middle")
            self._put({"text/html": f"{label} {bar}", "text/plain": says})
        self._begun = True

    def clear(self) -> None:
        """Take it away."""
        if self._begun and self._display is None:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        elif self._begun:
            self._put({"text/html": "", "text/plain": ""})

    def _put(self, bundle: dict[str, str]) -> None:
        if self._handle is None:
            self._handle = self._display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)
