"""The check of the alert of lesson 03 (3.7): histories that the check writes, second by second."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from labkit.course.checks import Context, Verdict, done
from labkit.monitoring.alert import Alert
from labkit.monitoring.samples import REQUESTS, History, Labels, Snapshot

STEP, WINDOW, PER_S = 0.5, 2.0, 100
"""Seconds between two looks, seconds that a rate looks back on, requests a second."""

CALM, BLIP, OUTAGE = 0.01, 0.40, 0.30
"""Shares of errors: of every ordinary second, of one bad half second, of an outage."""

SOON = 5.0
"""Seconds within which an outage has to be told, and within which its end has."""


def check_3_7(ctx: Context, error_alert: Callable[..., Any]) -> Verdict:
    """An ordinary minute, a bad half second, an outage and its end."""
    with _unheard():
        return _judged(ctx, error_alert)


@contextmanager
def _unheard() -> Iterator[None]:
    """What happens in a history that is made up does not belong in the log."""
    log = logging.getLogger("labkit.alerts")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _judged(ctx: Context, error_alert: Callable[..., Any]) -> Verdict:
    calm = _fired(ctx, error_alert, lambda at: CALM, 60.0)
    ctx.require(not calm, "alert_noise", share=100 * CALM, times=len(calm))
    blip = _fired(ctx, error_alert, lambda at: BLIP if at == 10 else CALM, 20.0)
    ctx.require(not blip, "alert_blip", share=100 * BLIP)
    outage = _fired(ctx, error_alert, lambda at: OUTAGE if 10 <= at < 30 else CALM, 40.0)
    ctx.require(outage, "alert_deaf", share=100 * OUTAGE, seconds=20)
    began = min(outage) - 10
    ctx.require(began <= SOON, "alert_late", took=began, limit=SOON)
    ctx.require(max(outage) < 30 + SOON, "alert_stays", limit=SOON)
    mild = _fired(ctx, error_alert, lambda at: 0.08 if 10 <= at < 30 else CALM, 40.0)
    ctx.require(mild, "alert_high", share=8)
    return done("alert_done", began=began)


def _fired(
    ctx: Context, error_alert: Callable[..., Any], share: Callable[[float], float], seconds: float
) -> list[float]:
    """The moments at which a new alert of hers is firing, while this share of the requests fails."""
    alert = ctx.call(error_alert)
    ctx.require(isinstance(alert, Alert), "alert_type", what=type(alert).__name__)
    history, good, bad, moments = History(WINDOW), 0.0, 0.0, list[float]()
    for n in range(int(seconds / STEP)):
        at = n * STEP
        counted: dict[Labels, float] = {(("status", "200"),): good, (("status", "500"),): bad}
        history.add(Snapshot(at, {REQUESTS: counted}))
        with ctx.limited():
            if alert.evaluate(history) == "firing":
                moments.append(at)
        failed = PER_S * STEP * share(at)
        good, bad = good + PER_S * STEP - failed, bad + failed
    return moments
