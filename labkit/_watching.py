"""What a Lab tells of the application that it runs: its logs, its processes, its metrics while they change."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from labkit._text import say
from labkit.asgi import ASGIApp
from labkit.errors import MonitoringError

if TYPE_CHECKING:
    import pandas as pd

    from labkit.monitoring.journal import Journal
    from labkit.monitoring.panel import Panel
    from labkit.monitoring.system import SystemView


class Watching:
    """Whoever has an application and a journal open has these."""

    app: ASGIApp
    _journal: Journal

    def logs(
        self, component: str | None = None, *, level: str | int | None = None, request_id: str | None = None
    ) -> pd.DataFrame:
        """What was logged in this process since the Lab was opened, the last 10,000 records, the oldest first.

        Other Labs and the learner's own loggers included. The components of labkit speak from INFO on unless
        `labkit.monitoring.logs.configure` says otherwise, other loggers as they are set. Columns: time (UTC), level,
        component, request_id, message, error (a traceback), and the fields that one of the records has.

        Args:
            component: ``"http"``, ``"sql"``, ``"cache"``, ``"health"``, ``"alerts"``, or the name of any other logger;
                those below it are included.
            level: the lowest, ``"WARNING"``.
            request_id: what the answer had as ``X-Request-ID``.

        Raises:
            MonitoringError: if there is no such level.
        """
        df = self._journal.df
        if level is not None:
            number = logging.getLevelNamesMapping().get(level.upper()) if isinstance(level, str) else level
            if not isinstance(number, int) or isinstance(number, bool):
                raise MonitoringError(say("logs.level", name="level", value=repr(level)))
            ranks = logging.getLevelNamesMapping()
            df = df[[ranks.get(name, 0) >= number for name in df["level"]]]
        if component is not None:
            name = component.removeprefix("labkit.")
            df = df[(df["component"] == name) | df["component"].str.startswith(f"{name}.")]
        if request_id is not None:
            df = df[df["request_id"] == request_id]
        fields = list(df)[list(df).index("error") + 1 :]
        df = df.drop(columns=[name for name in fields if df[name].isna().all()])
        return df.reset_index(drop=True)

    def system(self) -> SystemView:
        """What htop would show: this process, the servers that it started and the machine. Looks for 0.2 s."""
        from labkit.monitoring.system import overview

        return overview()

    def panel(self, source: Any = None, **options: Any) -> Panel:
        """Requests, errors, durations and the cache's hit rate, drawn while they change.

        ::

            with lab.panel().live():
                lab.load("/users")

        Args:
            source: a registry of your own that has the course's metrics; default: ``app.state.metrics``.
            options: see `labkit.monitoring.panel.Panel`.

        Raises:
            MonitoringError: if there are no metrics, or an option is unusable.
        """
        from labkit.monitoring.panel import Panel

        if source is None:
            source = getattr(getattr(self.app, "state", None), "metrics", None)
        if source is None:
            raise MonitoringError(say("monitor.no_metrics"))
        return Panel(source, **options)


def listen() -> Journal:
    """A journal, to be entered."""
    from labkit.monitoring.journal import Journal

    return Journal()
