"""A real Prometheus scrapes a real server: PromQL there and ``labkit.monitoring.samples`` here say the same."""

from __future__ import annotations

import asyncio
import math
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Response

from labkit.monitoring.metrics import Metrics
from labkit.monitoring.middleware import MetricsMiddleware
from labkit.monitoring.samples import DURATION, REQUESTS, History, Labels, Snapshot, histogram_quantile, increase, rate
from labkit.services import watchdog
from tests.launching import free_port

SCRAPES = 0.1  # seconds between two
STEP = 89  # milliseconds between two moments at which both are asked
JOBS = {"metrics": "/metrics", "health": "/health/metrics"}
WINDOWS = (0.5, 1.0, 3.0, 60.0)  # seconds
DEMO = "demo_total"
OURS = f'{{__name__=~"app_.*|{DEMO}",job=~"{"|".join(JOBS)}|demo"}}'

Tool = str


class Moment(int):
    """Milliseconds. Their difference is seconds: reckoned as in Prometheus, for even the last bit can decide.

    Where something is exactly 1.1 times the average distance, rounding tells whether it is less.
    """

    def __sub__(self, other: float) -> Any:
        return (int(self) - int(other)) / 1e3 if isinstance(other, Moment) else Moment(int(self) - round(other * 1e3))


@pytest.fixture(scope="module")
def promtool() -> Tool:
    """Debian's package prometheus has both programs."""
    return program("promtool")


def program(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"no {name}: install the package prometheus")
    return found


class Shop:
    """An application that is watched, and how often it was asked for what."""

    def __init__(self) -> None:
        self.metrics, self.asked, self.demo = Metrics(), Counter[tuple[str, str, str]](), 0.0
        self.app = FastAPI()
        self.app.add_middleware(MetricsMiddleware, metrics=self.metrics, excluded=[*JOBS.values(), "/demo"])

        @self.app.get("/items/{item}")
        async def item(item: int, ms: float = 0.0) -> int:
            await asyncio.sleep(ms / 1e3)
            return item

        @self.app.get("/orders")
        async def orders(fail: bool = False) -> Response:
            return Response(status_code=503 if fail else 200)

        @self.app.get("/demo")
        async def demo() -> Response:  # a counter that the tests wind back; gone while it is below 0
            return Response(f"{DEMO} {self.demo}\n" if self.demo >= 0 else "", media_type="text/plain; version=0.0.4")

        for path in JOBS.values():
            self.app.get(path)(self.scrape)

    async def scrape(self) -> Response:
        text, kind = self.metrics.render()
        return Response(text, headers={"content-type": kind})

    def story(self, client: httpx.Client) -> None:
        """Three seconds: quiet, slow, failing, quiet; a path and a status that are new; a counter that falls twice."""
        for step in range(60):
            due = time.monotonic() + 0.05
            self.ask(client, f"/items/{step}?ms={1 + step % 20 if step > 20 else 1}", "/items/{item}")
            for turn in range(3 if step > 15 else 0):
                self.ask(client, f"/orders?fail={30 < step < 45 and turn == 0}", "/orders")
            self.demo = {25: -30.0, 45: 1.0}.get(step, self.demo + 3)
            time.sleep(max(0.0, due - time.monotonic()))

    def ask(self, client: httpx.Client, path: str, endpoint: str) -> None:
        self.asked["GET", endpoint, str(client.get(path).status_code)] += 1

    @contextmanager
    def served(self) -> Iterator[int]:
        """Served by uvicorn on loopback; gives the port."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            config = uvicorn.Config(self.app, log_level="error", ws="none", lifespan="off")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            try:
                while not server.started:
                    time.sleep(0.01)
                yield int(listener.getsockname()[1])
            finally:
                server.should_exit = True
                thread.join()


class Prometheus:
    """A server that scrapes, and its answers."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def up(self) -> int | None:
        """How many of the three targets answer; None as long as it does not know."""
        try:
            if self.client.get("/-/ready").status_code != 200:
                return None
        except httpx.TransportError:
            return None
        found = self.ask("query", query="sum(up) and count(up) == 3")
        return int(found[0]["value"][1]) if found else None

    def ask(self, path: str, **what: Any) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=what)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]["result"]

    def raw(self) -> dict[str, dict[str, dict[Labels, list[tuple[Moment, float]]]]]:
        """All samples there are: by job, name and labels, each with its milliseconds."""
        found: dict[str, Any] = {}
        for series in self.ask("query", query=f"{OURS}[5m]"):
            labels = dict(series["metric"])
            name, job = labels.pop("__name__"), labels.pop("job")
            del labels["instance"]
            points = [(Moment(round(moment * 1000)), float(value)) for moment, value in series["values"]]
            found.setdefault(job, {}).setdefault(name, {})[tuple(sorted(labels.items()))] = points
        return found

    def over_time(self, query: str, moments: Sequence[Moment]) -> dict[Labels, dict[Moment, float]]:
        """What a query says at each of these moments (milliseconds), by labels."""
        what = {"start": moments[0] / 1e3, "end": moments[-1] / 1e3, "step": STEP / 1e3}
        answers = {}
        for series in self.ask("query_range", query=query, **what):
            labels = {name: value for name, value in series["metric"].items() if name not in ("instance", "job")}
            answers[tuple(sorted(labels.items()))] = {
                Moment(round(t * 1000)): float(value) for t, value in series["values"]
            }
        return answers


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop()


@pytest.fixture(scope="module")
def prometheus(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus after it has watched the whole story of the shop, which is closed by then."""
    folder, url = tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{free_port()}"
    command = [program("prometheus"), f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={url}"]
    # Hidden, and 5 s by default: how soon it turns to its targets after the start.
    command += [f"--storage.tsdb.path={folder / 'data'}", "--scrape.discovery-reload-interval=100ms"]
    with httpx.Client(base_url=f"http://{url}", timeout=20) as client, ExitStack() as stack:
        prometheus = Prometheus(client)
        with shop.served() as served, httpx.Client(base_url=f"http://127.0.0.1:{served}") as browser:
            jobs = [
                f"{{job_name: {job}, metrics_path: {path}, static_configs: [{{targets: ['127.0.0.1:{served}']}}]}}"
                for job, path in (*JOBS.items(), ("demo", "/demo"))
            ]
            every = f"{SCRAPES * 1e3:.0f}ms"
            (folder / "prometheus.yml").write_text(
                f"global: {{scrape_interval: {every}, scrape_timeout: {every}}}\nscrape_configs: [{', '.join(jobs)}]\n"
            )
            process = stack.enter_context(watchdog.spawn(command, log=folder / "log", cwd=folder))
            until(lambda: not process.alive or prometheus.up() == 3)
            shop.story(browser)
            time.sleep(3 * SCRAPES)
        until(lambda: not process.alive or prometheus.up() == 0)
        assert process.alive, (folder / "log").read_text()
        yield prometheus


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def raw(prometheus: Prometheus) -> dict[str, dict[str, dict[Labels, list[tuple[Moment, float]]]]]:
    return prometheus.raw()


@pytest.fixture(scope="module")
def moments(raw: Any) -> list[Moment]:
    """Moments of the whole story, from before the first scrape to after the last."""
    points = [point for names in raw.values() for series in names.values() for point in series.values()]
    first, last = min(each[0][0] for each in points), max(each[-1][0] for each in points)
    return [Moment(at) for at in range(int(first) - 300, int(last) + 300, STEP)]


def same(ours: float, theirs: float | None) -> bool:
    """Equal to 1e-9; where Prometheus has no answer or NaN, ours is NaN."""
    if theirs is None or math.isnan(theirs):
        return math.isnan(ours)
    return math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("job", JOBS)
def test_the_totals_are_the_apps(prometheus: Prometheus, shop: Shop, raw: Any, job: str) -> None:
    last = max(points[-1][0] for points in raw[job][REQUESTS].values())
    found = prometheus.ask("query", query=f'{REQUESTS}{{job="{job}"}}', time=last / 1e3)
    totals = {tuple(each["metric"][name] for name in ("method", "endpoint", "status")): each for each in found}
    assert {key: int(each["value"][1]) for key, each in totals.items()} == shop.asked
    assert {key[1:] for key in shop.asked} == {("/items/{item}", "200"), ("/orders", "200"), ("/orders", "503")}
    now = Snapshot.of(shop.metrics)
    assert {key: now.total(REQUESTS, endpoint=key[1], status=key[2]) for key in shop.asked} == shop.asked


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(
    ("job", "name"), [*((job, name) for job in JOBS for name in (REQUESTS, f"{DURATION}_bucket")), ("demo", DEMO)]
)
def test_rate_and_increase(
    prometheus: Prometheus, raw: Any, moments: list[Moment], job: str, name: str, window: float
) -> None:
    selector = f'{name}{{job="{job}"}}[{window * 1e3:.0f}ms]'
    rates, grown = (prometheus.over_time(f"{each}({selector})", moments) for each in ("rate", "increase"))
    series, some = raw[job][name], 0
    assert set(rates) == set(grown) <= set(series)
    for labels, points in series.items():
        for at in moments:
            theirs = grown.get(labels, {}).get(at)
            assert same(increase(points, window, at), theirs), (labels, window, at, theirs, points)
            assert same(rate(points, window, at), rates.get(labels, {}).get(at))
            some += theirs is not None and theirs > 0
    assert some > 20, "there was something to compare"


def snapshots(names: dict[str, dict[Labels, list[tuple[Moment, float]]]], *wanted: str) -> dict[Moment, Snapshot]:
    """The samples of one job as the snapshots that they were scraped in."""
    found: dict[Moment, dict[str, dict[Labels, float]]] = {}
    for name in wanted:
        for labels, points in names[name].items():
            for moment, value in points:
                found.setdefault(moment, {}).setdefault(name, {})[labels] = value
    return {moment: Snapshot(moment, values) for moment, values in sorted(found.items())}


@pytest.mark.parametrize("window", WINDOWS[1:3])
def test_quantiles_and_shares(prometheus: Prometheus, raw: Any, moments: list[Moment], window: float) -> None:
    history, job, qs, past = History(window, keep=1e6), '{job="metrics"}', (0.5, 0.95), f"[{window * 1e3:.0f}ms]"
    for snapshot in snapshots(raw["metrics"], REQUESTS, f"{DURATION}_bucket").values():
        history.add(snapshot)

    def asked(query: str) -> dict[Moment, float]:
        return prometheus.over_time(query, moments).get((), {})

    quantiles = {q: asked(f"histogram_quantile({q}, sum by (le) (rate({DURATION}_bucket{job}{past})))") for q in qs}
    failed = f'{REQUESTS}{{job="metrics",status=~"5.."}}{past}'
    share = asked(f"sum(rate({failed})) / sum(rate({REQUESTS}{job}{past}))")
    orders = f'{REQUESTS}{{job="metrics",endpoint="/orders"}}{past}'
    by_status = prometheus.over_time(f"sum by (status) (rate({orders}))", moments)
    for at in moments:
        for q in qs:
            assert same(history.quantile(q, at=at), quantiles[q].get(at)), (q, at)
        found = history.rates(REQUESTS, ("status",), at=at, endpoint="/orders")
        theirs = {dict(labels)["status"]: values[at] for labels, values in by_status.items() if at in values}
        assert {status: each for (status,), each in found.items()} == pytest.approx(theirs, rel=1e-9, abs=1e-12)
        ours = history.error_rate(at=at)  # where no 5xx was seen PromQL has no answer, and we say 0
        assert same(ours, share.get(at)) or (ours == 0 and at not in share), (at, ours, share.get(at), found)
    assert max(share.values()) > 0.03 and sum(not math.isnan(each) for each in quantiles[0.95].values()) > 20


@pytest.mark.parametrize("q", [-0.1, 0.0, 0.3, 1.0, 1.1, math.nan])
@pytest.mark.parametrize(
    "buckets",
    [
        {"0.1": 5, "0.2": 8, "+Inf": 10},
        {"0.1": 0, "0.2": 8, "+Inf": 10},
        {"-1": 5, "0.2": 8, "+Inf": 10},
        {"0.1": 5, "0.2": 4, "0.4": 7, "+Inf": 10},
        {"0.1": 5, "0.2": 8},
        {"0.1": 0, "+Inf": 0},
        {"+Inf": 8},
    ],
)
def test_odd_buckets(prometheus: Prometheus, buckets: dict[str, float], q: float) -> None:
    made = " or ".join(f'label_replace(vector({n}), "le", "{le}", "", "")' for le, n in buckets.items())
    (theirs,) = prometheus.ask("query", query=f"histogram_quantile({q}, {made})".replace("nan", "NaN"))
    ours = histogram_quantile(q, ((float(le), n) for le, n in buckets.items()))
    value = float(theirs["value"][1])
    assert ours == value or same(ours, value)


def test_promtool_finds_nothing_to_complain_of(prometheus: Prometheus, shop: Shop, promtool: Tool) -> None:
    text, _ = shop.metrics.render()
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, timeout=20, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")
