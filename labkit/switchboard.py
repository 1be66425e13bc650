"""Buttons that break what a Lab runs on and set it right again, to be pressed while a lesson runs.

What a button asks for is done in a thread of ours, so that it works while a cell sleeps, in whatever thread the
kernel runs its callbacks. The same thread looks at the parts twice a second and writes what it sees, not what
was asked for, since a ``with lab.fault(...)`` elsewhere or a command by hand changes it as well.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from labkit import _html, _outages
from labkit._text import say

LOOK = 0.5  # seconds between two looks
SNAPSHOT = 5.0  # seconds after which what is known is sent again, for a page that came later
_COLOURS = {"●": "#009E73", "▲": "#E69F00", "✗": "#D55E00"}

Line = tuple[str, str]  # a symbol and a sentence


class Switchboard:
    """One button a fault and what is the matter at the moment. Shown in a notebook; elsewhere a plain card.

    Args:
        outages: of a Lab.
        app: the application; if it has an ``app.state.cache`` with a breaker, that is shown too.
    """

    def __init__(self, outages: _outages.Outages, app: object) -> None:
        self._outages, self._app = outages, app
        self._orders: SimpleQueue[tuple[str, bool]] = SimpleQueue()
        self._on: dict[str, _outages.Fault] = {}
        self._buttons: dict[str, Any] = {}
        self._said: tuple[Line, ...] = ()
        self._panel: Any = None
        self._lock = threading.Lock()

    @property
    def lines(self) -> list[Line]:
        """What is the matter: the state of each part, the breaker's, and what went wrong with a button."""
        if self._outages.closed:
            return [("✗", say("core.closed"))]
        parts = [line for part in self._outages.parts for line in part.lines()]
        if not parts:
            parts = [("▲", problem) for problem in dict.fromkeys(map(self._outages.problem, self._outages.known))]
        breaker = getattr(getattr(getattr(self._app, "state", None), "cache", None), "breaker", None)
        known = {"closed": "●", "half_open": "▲", "open": "✗"}
        seen = getattr(breaker, "state", None)
        circuit = [(known[seen], say(f"faults.breaker_{seen}"))] if seen in known else []
        return [*parts, *circuit, *self._said]

    @property
    def usable(self) -> bool:
        """Whether there is something to switch, in an open Lab."""
        return not all(map(self._outages.problem, self._outages.known))

    def switch(self, name: str, on: bool) -> None:
        """Begin or end a fault as its button does: never raises, but says what went wrong."""
        if on == (name in self._on):
            return
        self._said = ()
        try:
            if on:
                self._on[name] = self._outages.fault(name).__enter__()
            else:
                self._on.pop(name).__exit__()
        except Exception as error:  # a button has nobody to raise to
            self._said = (("✗", str(error)),)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        bundle = {"text/plain": repr(self), "text/html": self._repr_html_()}
        ipython = sys.modules.get("IPython")
        shell = ipython.get_ipython() if ipython is not None else None
        if hasattr(shell, "kernel"):  # a notebook, or somebody who runs one: only the page knows if it has widgets
            bundle |= self._show()._repr_mimebundle_(**options)
            bundle["text/plain"] = repr(self)
        return bundle

    def _show(self) -> Any:
        with self._lock:
            if self._panel is None:
                self._panel = self._build()
                threading.Thread(target=self._live, name="labkit switchboard", daemon=True).start()
            return self._panel

    def _build(self) -> Any:
        import ipywidgets  # late: only notebooks need it

        for name in self._outages.known:
            problem = self._outages.problem(name)
            button = ipywidgets.ToggleButton(
                description=_outages.label(name),
                value=name in self._on,
                disabled=bool(problem),
                tooltip=problem,
                layout={"width": "auto"},
            )
            button.observe(lambda change, name=name: self._orders.put((name, change["new"])), "value")
            self._buttons[name] = button
            _hear(button)
        self._text = ipywidgets.HTML(self._state())
        return ipywidgets.VBox(
            [ipywidgets.HBox(list(self._buttons.values()), layout={"flex_flow": "row wrap"}), self._text]
        )

    def _live(self) -> None:
        """Carry orders out and keep the text true until the Lab is closed."""
        sent = time.monotonic()
        while not self._outages.closed:
            with suppress(Empty):
                self.switch(*self._orders.get(timeout=LOOK))
            self._refresh()
            if time.monotonic() - sent > SNAPSHOT:
                sent = time.monotonic()
                for widget in (self._text, *self._buttons.values()):
                    widget.send_state()
                    _hear(widget)
        self._refresh()

    def _refresh(self) -> None:
        if self._text.value != (now := self._state()):
            self._text.value = now
        for name, button in self._buttons.items():
            button.button_style = "danger" if name in self._on else ""
            button.disabled = bool(self._outages.problem(name))
            if self._said and button.value != (name in self._on):  # what failed is not pressed
                button.value = name in self._on
            _hear(button)

    def _state(self) -> str:
        rows = [
            _html.tag("div", _html.join([_html.tag("span", symbol, f"color:{_COLOURS[symbol]}"), " ", sentence]))
            for symbol, sentence in self.lines
        ]
        return _html.tag("div", _html.join(rows), f"color:{_html.INK};font-size:13px;line-height:1.5", role="status")

    def __repr__(self) -> str:
        return " · ".join(f"{symbol} {sentence}" for symbol, sentence in self.lines)

    def _repr_html_(self) -> _html.Safe:
        names = ", ".join(map(_outages.label, self._outages.known))
        note = say("faults.static", names=names) if self.usable else ""
        symbol = max((symbol for symbol, _ in self.lines), key="●▲✗".index)
        body = _html.Safe(self._state())
        return _html.card(say("faults.switchboard"), body, colour=_COLOURS[symbol], symbol=symbol, note=note)


def _hear(widget: Any) -> None:
    """Let the page choose the shell of the kernel that hears a press.

    JupyterLab chooses one that is free while a cell runs. But ipykernel 7.4 prefers the shell from which the
    widget spoke last, and notes it here: that is the cell's, which hears nothing until the cell has ended.
    """
    vars(widget.comm).pop("_reply_subshell_id", None)
