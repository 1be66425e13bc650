"""Lesson 03: what holds for every exercise; metrics, middleware and alert, each wrong answer told apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from labkit import Lab
from labkit.blog import create_app
from labkit.course.lessons._cache import RightClient
from labkit.course.markers import Role
from labkit.monitoring.alert import Alert
from tests.lessons.judging import Notebook, shows_its_trap

NAMES = {
    "3.1": "MetricsCollector",
    "3.2": "LiveMetrics",
    "3.3": "endpoint_of",
    "3.4": "monitoring_middleware",
    "3.5": "check_part",
    "3.6": "detailed_health",
    "3.7": "error_alert",
}
SETUP = ("imports", "metrics", "live", "endpoint", "ids", "router", "part")
TRAPS: dict[str, tuple[str, dict[str, object]]] = {  # what the untouched starter shows, with counts of its sentence
    "3.1": ("metrics_twice", {"count": 0, "wanted": 6}),
    "3.2": ("live_empty", {"statements": 0, "cache": 0, "users": 0}),
    "3.3": ("endpoint_path", {"ids": 2_000, "words": 2_000, "names": 4_003}),
    "3.4": ("ids_500", {"missing": 2, "asked": 2, "ignored": True}),
    "3.5": ("part_bare", {"error": "ObjectNotExecutableError"}),
    "3.6": ("whole_blocks", {"probes": 1}),
    "3.7": ("alert_noise", {"share": 1.0, "times": 119}),
}
QUICK = [id for id in NAMES if id not in ("3.5", "3.6")]  # the others have a file of their own, with a PostgreSQL
Swaps = list[tuple[str, str]]


@pytest.fixture(scope="module")
def notebook(data: Path) -> Iterator[Notebook]:
    with Lab(create_app(data_folder=data, monitored=False), redis=True, latency=0) as lab:
        made = Notebook("03_monitoring", lab, NAMES, SETUP)
        made.namespace["Alert"] = Alert
        yield made


def judge(notebook: Notebook, id: str, key: str, swaps: Swaps, role: Role = "solution") -> None:
    """Hand in a version; its verdict is ``almost`` with this key and a hint of its own."""
    judged = notebook.check(id, notebook.version(id, *swaps, role=role))
    assert judged.state == ("almost", key)
    assert judged.card.hint


# --- every exercise


@pytest.mark.parametrize("id", NAMES)
def test_nothing_handed_in_is_to_do(notebook: Notebook, id: str) -> None:
    assert notebook.judge(id, None).state == ("todo", "course.missing")


@pytest.mark.parametrize("id", TRAPS)
def test_the_untouched_starter_is_to_do_and_measures_its_trap(notebook: Notebook, id: str) -> None:
    shows_its_trap(notebook, id, *TRAPS[id])


@pytest.mark.parametrize("id", QUICK)
@pytest.mark.parametrize("seed", [None, 977_131])
def test_the_solution_is_done(notebook: Notebook, id: str, seed: int | None) -> None:
    judged = notebook.check(id, notebook.text(id, "solution"), seed)
    assert judged.card.verdict == "done" and judged.card.note == ""


@pytest.mark.parametrize("id", NAMES)
def test_what_labkit_ships_is_not_hers(notebook: Notebook, id: str) -> None:
    assert notebook.judge(id, RightClient).state == ("almost", "course.not_yours")


@pytest.mark.parametrize("id", ["3.1", "3.2", "3.5", "3.7"])
def test_other_parameters_are_told_and_no_fault_of_the_check(notebook: Notebook, id: str) -> None:
    source = (
        f"def ask_database(engine):\n    engine.connect().close()\nasync def {NAMES[id]}(*, wrong):\n    return 0\n"
    )
    assert notebook.check(id, source).state == ("almost", "course.parameters")


@pytest.mark.parametrize("id", NAMES)
def test_there_are_four_rungs(notebook: Notebook, id: str) -> None:
    rungs = [notebook.lesson.hint(id) for _ in range(4)]
    assert len({rung.hint_key for rung in rungs}) == 4 and rungs[3].code


ERRORS: dict[str, Swaps] = {
    "3.1": [("self.requests.labels(method, endpoint, status).inc()", "self.nothing.inc()")],
    "3.2": [('self.track_cache_operation("get", event.kind)', "event.nothing()")],
    "3.3": [("route.path if route", "route.nothing if route")],
    "3.4": [("request.state.request_id = request_id", "request.nothing()")],
    "3.7": [("return Alert", "1 / 0\n    return Alert")],
}


@pytest.mark.parametrize("id", ERRORS)
def test_an_exception_of_hers_shows_her_line(notebook: Notebook, id: str) -> None:
    judged = notebook.check(id, notebook.version(id, *ERRORS[id]))
    assert judged.card.verdict == "error" or judged.state == ("almost", "metrics_half")
    assert judged.card.verdict == "almost" or ERRORS[id][0][1].split("\n")[0].strip() in judged.card.code


HANGS: dict[str, Swaps] = {
    "3.1": [("self.registry = registry", "self.registry = registry\n        while True: pass")],
    "3.2": [("return len(self.seen)", "while True: pass")],
    "3.3": [('route = request.scope.get("route")', "while True: pass")],
    "3.4": [("ids.request_id.set(request_id)", "while True: pass")],
    "3.7": [("return Alert", "while True: pass\n    return Alert")],
}


@pytest.mark.parametrize("id", HANGS)
def test_code_that_never_ends_is_ended(notebook: Notebook, id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.course.checks.CALL_LIMIT", 0.8)
    monkeypatch.setattr("labkit.course.lessons._monitor_middleware.LIMIT", 0.4)
    judged = notebook.check(id, notebook.version(id, *HANGS[id]))
    assert judged.card.verdict == "error"
    assert judged.key in ("course.call_too_long", "course.told")
    assert notebook.check("3.7", notebook.text("3.7", "solution")).card.verdict == "done", "the next one works"


def test_the_default_registry_is_left_as_it_was(notebook: Notebook) -> None:
    before = {*REGISTRY._collector_to_names}
    for id in ("3.1", "3.2"):
        for role in ("starter", "solution"):
            notebook.check(id, notebook.text(id, role))
    assert {*REGISTRY._collector_to_names} == before


def test_a_collector_on_the_default_registry_does_not_stand_in_the_way(notebook: Notebook) -> None:
    """The untouched notebook has made one: the check neither trips over it nor takes it away."""
    made = notebook.write("3.1", notebook.text("3.1"))(REGISTRY)
    try:
        for id in ("3.1", "3.2"):
            assert notebook.check(id, notebook.text(id, "solution")).card.verdict == "done"
        made.track_database_query("SELECT")
        assert REGISTRY.get_sample_value("app_database_queries_total", {"operation": "SELECT"}) == 1
    finally:
        for each in [each for each in REGISTRY._collector_to_names if getattr(each, "_name", "").startswith("app")]:
            REGISTRY.unregister(each)


# --- 3.1 the registry


OWN = '{"registry": registry}'
FIRST = '        self.requests = Counter("app_requests_total", "Total requests", [*labels, "status"], **own)\n'
UNREGISTERED = """
        for each in list(REGISTRY._collector_to_names):
            if any(name.startswith("app") for name in REGISTRY._collector_to_names[each]):
                REGISTRY.unregister(each)"""
CAUGHT = """
        try:
            self.requests = Counter("app_requests_total", "Total requests", [*labels, "status"])
        except ValueError:
            return"""
COLLECTORS: dict[str, tuple[str, Swaps]] = {
    "five of six": ("metrics_some", [('"Active users", **own', '"Active users"')]),
    "Info is forgotten": ("metrics_some", [('"Application information", **own', '"Application information"')]),
    "unregistered first": ("metrics_elsewhere", [(OWN, "{}" + UNREGISTERED)]),
    "caught": ("metrics_half", [(FIRST, ""), (OWN, "{}" + CAUGHT)]),
    "a registry of its own": (
        "metrics_nowhere",
        [(OWN, '{"registry": CollectorRegistry()}')],
    ),
    "another attribute": ("metrics_attribute", [("self.registry = registry", "self.registry = REGISTRY")]),
    "a suffix": ("metrics_names", [('"app_active_users"', 'f"app_active_users_{id(self)}"')]),
    "info twice": ("metrics_info", [('Info("app",', 'Info("app_info",')]),
    "milliseconds": ("metrics_seconds", [("observe(duration)", "observe(duration * 1000)")]),
    "twice": ("metrics_counts", [("self.queries.labels(operation).inc()", "self.queries.labels(operation).inc(2)")]),
    "labels swapped": ("metrics_counts", [("labels(method, endpoint, status)", "labels(endpoint, method, status)")]),
}  # fmt: skip


@pytest.mark.parametrize(("key", "swaps"), COLLECTORS.values(), ids=COLLECTORS)
def test_each_wrong_collector_has_a_sentence_of_its_own(notebook: Notebook, key: str, swaps: Swaps) -> None:
    judge(notebook, "3.1", key, swaps)


SHARED = """self.registry = registry
        if self.made:
            self.__dict__.update(self.made, registry=registry)
            for each in self.made["all"]:
                registry.register(each)
            return
"""
KEPT = """.info(about)
        self.made.update(vars(self), all=list(registry._collector_to_names))
"""


def test_instruments_of_the_class_are_shared(notebook: Notebook) -> None:
    swaps = [("    def __init__", "    made = {}\n\n    def __init__"), ("self.registry = registry\n", SHARED)]
    source = notebook.version("3.1", *swaps, (".info(about)\n", KEPT))
    judged = notebook.check("3.1", source)
    assert judged.state == ("almost", "metrics_shared") and judged.card.counts["first"] == 2


def test_a_missing_method_is_named(notebook: Notebook) -> None:
    judged = notebook.check("3.1", notebook.version("3.1", ("def track_cache_operation", "def track_cache")))
    assert judged.state == ("almost", "metrics_methods") and "track_cache_operation" in judged.card.message


def test_finer_buckets_are_welcome(notebook: Notebook) -> None:
    source = notebook.version("3.1", ('"Request duration", labels,', '"Request duration", labels, buckets=(0.001, 1),'))
    assert notebook.check("3.1", source).card.verdict == "done"


# --- 3.2 metrics that live


VERB = "statement.split(None, 1)[0].upper()"
TRACKED = f"self.track_database_query({VERB})"
SUPER = "super().__init__(registry)"
EVENT = '        if event.kind != "breaker":\n            self.track_cache_operation("get", event.kind)'
LIVES: dict[str, tuple[str, Swaps]] = {
    "the whole statement": ("live_sql", [(VERB, "statement")]),
    "as it is written": ("live_case", [(VERB, "statement.split(None, 1)[0]")]),
    "the first letters": ("live_operations", [(VERB, "statement[:6].upper()")]),
    "counted twice": ("live_statements_count", [(TRACKED, f"{TRACKED}; self.track_database_query('ALL')")]),
    "no statements": ("live_no_statements", [(TRACKED, "pass")]),
    "no cache": ("live_no_cache", [('self.track_cache_operation("get", event.kind)', "pass")]),
    "no users": ("live_no_users", [("self.users.set_function(self.active)", "pass")]),
    "the breaker too": ("live_breaker", [(EVENT, '        self.track_cache_operation("get", event.kind)')]),
    "the key": ("live_cache_series", [('("get", event.kind)', "(event.key, event.kind)")]),
    "hits alone": ("live_results", [('event.kind != "breaker"', 'event.kind == "hit"')]),
    "all are hits": ("live_results", [('("get", event.kind)', '("get", "hit")')]),
    "visits": (
        "live_visits",
        [("self.seen[user] = self.clock()", "self.users.inc()"), ("self.users.set_function(self.active)", "pass")],
    ),
    "a flag": (
        "live_people",
        [("self.seen[user] = self.clock()", "self.users.set(1)"), ("self.users.set_function(self.active)", "pass")],
    ),
    "the time of day": ("live_clock", [("self.clock()", "time.time()")]),
    "only when somebody comes": (
        "live_stuck",
        [
            ("self.users.set_function(self.active)", "pass"),
            ("self.seen[user] = self.clock()", "self.seen[user] = self.clock()\n        self.users.set(self.active())"),
        ],
    ),
    "for ever": ("live_stuck", [("at < since", "False")]),
    "the first visit": ("live_first", [("self.seen[user] = self.clock()", "self.seen.setdefault(user, self.clock())")]),
    "ten minutes": ("live_window", [("- 300", "- 600")]),
    "milliseconds": ("live_window", [("- 300", "- 0.3")]),
    "a method is gone": ("live_methods", [("def saw", "def has_seen")]),
    "no registry": ("live_registry", [(SUPER, f"{SUPER}; del self.registry")]),
}  # fmt: skip
NO_HINT = ("live_methods", "live_registry")


def test_the_breaker_may_be_counted_as_what_it_is(notebook: Notebook) -> None:
    counted = '        self.track_cache_operation("breaker" if event.kind == "breaker" else "get", event.kind)'
    assert notebook.check("3.2", notebook.version("3.2", (EVENT, counted))).state == ("done", "live_done")


@pytest.mark.parametrize(("key", "swaps"), LIVES.values(), ids=LIVES)
def test_each_wrong_feeding_has_a_sentence_of_its_own(notebook: Notebook, key: str, swaps: Swaps) -> None:
    judged = notebook.check("3.2", notebook.version("3.2", *swaps))
    assert judged.state == ("almost", key)
    assert judged.card.hint or key in NO_HINT


@pytest.mark.parametrize("role", ["starter", "solution"])
def test_the_feeding_is_judged_whether_or_not_the_registry_was_repaired(notebook: Notebook, role: Role) -> None:
    namespace = dict(notebook.namespace)
    notebook.namespace["MetricsCollector"] = notebook.write("3.1", notebook.text("3.1", role))
    try:
        for _ in range(2):
            assert notebook.check("3.2", notebook.text("3.2", "solution")).state == ("done", "live_done")
    finally:
        notebook.namespace.clear()
        notebook.namespace.update(namespace)


# --- 3.3 the label


ROUTE = 'route = request.scope.get("route")\n    return route.path if route else "unmatched"'
LABELS: dict[str, tuple[str, str]] = {
    "numbers replaced": ("endpoint_words", 're.sub(r"[0-9]+", "{id}", request.url.path)'),
    "the first part": ("endpoint_words", '"/" + request.url.path.split("/")[1]'),
    "only what exists": ("endpoint_ids", 'request.url.path if request.scope.get("route") else "unmatched"'),
    "one for all": ("endpoint_merged", '"all"'),
    "the first part of what exists": (
        "endpoint_merged",
        '"/" + request.url.path.split("/")[1] if request.scope.get("route") else "unmatched"',
    ),
    "the function's name": (
        "endpoint_names",
        'request.scope["route"].name if request.scope.get("route") else "unmatched"',
    ),
    "None": ("endpoint_type", 'getattr(request.scope.get("route"), "path", None)'),
    "the route": ("endpoint_type", 'request.scope.get("route")'),
}


@pytest.mark.parametrize(("key", "label"), LABELS.values(), ids=LABELS)
def test_each_wrong_label_has_a_sentence_of_its_own(
    notebook: Notebook, key: str, label: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.course.lessons._monitor_middleware.MADE_UP", 100)
    judge(notebook, "3.3", key, [(ROUTE, f"return {label}")])


def test_a_route_that_is_not_there_is_told_with_her_line(notebook: Notebook) -> None:
    judged = notebook.check("3.3", notebook.version("3.3", (ROUTE, 'return request.scope["route"].path')))
    assert judged.state == ("error", "endpoint_missing")
    assert judged.card.hint and 'request.scope["route"].path' in judged.card.code


def test_the_prefix_of_an_included_router_is_remarked_upon(notebook: Notebook) -> None:
    assert notebook.check("3.3", notebook.text("3.3", "solution")).state == ("done", "endpoint_done_prefix")
    context = 'request.scope.get("fastapi", {}).get("effective_route_context")'
    whole = f'getattr({context}, "path_format", None) or route.path'
    source = notebook.version("3.3", ("return route.path if route", f"return {whole} if route"))
    judged = notebook.check("3.3", source)
    assert judged.state == ("done", "endpoint_done")
    assert judged.card.counts.items() >= {"names": 4, "series": 72}.items()


def test_any_name_for_what_does_not_exist_will_do(notebook: Notebook) -> None:
    assert notebook.check("3.3", notebook.version("3.3", ('"unmatched"', '"404"'))).card.verdict == "done"


# --- 3.4 an id on every answer


RESPONSE = 'PlainTextResponse("Internal Server Error", 500)'
LOG = 'logging.getLogger("labkit.http").exception("%s %s failed", request.method, request.url.path)'
HEADER = 'response.headers["X-Request-ID"] = request_id'
TIME = 'response.headers["X-Response-Time"] = f"{seconds:.4f}"'
CHECK = 'if not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", request_id):'
TRACK = "metrics.track_request(request.method, endpoint_of(request), response.status_code, seconds)"
RAISED = "metrics.track_request(request.method, endpoint_of(request), 500, 0.1)\n        raise"
HALF = f"""{RESPONSE[:-1]}, headers={{"X-Request-ID": request_id}})
        {TRACK.replace("seconds", "0.1")}
        return response"""
OTHER = "    response = PlainTextResponse('ok', response.status_code)\n    metrics.saw"
AS_200 = (RESPONSE, RESPONSE.replace("500", "200"))
AS_500 = ("response.status_code, s", "500 if type(response) is PlainTextResponse else response.status_code, s")
TOLD = [("except Exception:", "except Exception as error:"), (RESPONSE, "PlainTextResponse(str(error), 500)")]
MIDDLEWARES: dict[str, tuple[str, Swaps]] = {
    "logged and raised": ("ids_500", [(f"response = {RESPONSE}", RAISED)]),
    "no header": ("ids_none", [(HEADER, "pass")]),
    "no time": ("ids_no_time", [(TIME, "pass")]),
    "no time on a 500": ("ids_500_time", [(RESPONSE, HALF)]),
    "one id for all": ("ids_same", [("uuid.uuid4().hex", '"4f2a"')]),
    "200 for an error": ("ids_statuses", [AS_200]),
    "503 for an error": ("ids_statuses", [(RESPONSE, RESPONSE.replace("500", "503"))]),
    "counted as 500, sent as 200": ("ids_status", [AS_200, AS_500]),
    "the error in the answer": ("ids_leaks", TOLD),
    "said under no id": ("ids_nameless", [("ids.request_id.set(request_id)", "pass")]),
    "never said": ("ids_silent", [(LOG, "pass")]),
    "a log without the reason": ("ids_silent", [("exception(", "error(")]),
    "not read": ("ids_ignored", [('request.headers.get("X-Request-ID", "")', '""')]),
    "taken as it is": ("ids_unsafe", [(CHECK, "if not request_id:")]),
    "only the length": ("ids_unsafe", [(CHECK, "if not 0 < len(request_id) <= 64:")]),
    "only the letters": ("ids_unsafe", [("{1,64}", "+")]),
    "the beginning alone": ("ids_unsafe", [("fullmatch", "match")]),
    "an empty one": ("ids_none", [("{1,64}", "{0,64}")]),
    "not counted": ("ids_uncounted", [(TRACK, "pass")]),
    "errors not counted": ("ids_count", [(f"    {TRACK}", f"    if response.status_code < 500:\n        {TRACK}")]),
    "counted twice": ("ids_count", [(TRACK, f"{TRACK}; {TRACK}")]),
    "the clock's time": ("ids_seconds", [(TRACK, TRACK.replace("seconds)", "time.time())"))]),
    "another answer": ("ids_changed", [("    metrics.saw", OTHER)]),
}  # fmt: skip


@pytest.mark.parametrize(("key", "swaps"), MIDDLEWARES.values(), ids=MIDDLEWARES)
def test_each_wrong_middleware_has_a_sentence_of_its_own(notebook: Notebook, key: str, swaps: Swaps) -> None:
    judge(notebook, "3.4", key, swaps)


def test_a_class_is_told_where_it_does_not_fit(notebook: Notebook) -> None:
    source = notebook.text("3.4", "solution").replace("async def monitoring_middleware(", "async def dispatch(self, ")
    lines = ["class monitoring_middleware(BaseHTTPMiddleware):", *(f"    {line}" for line in source.splitlines())]
    judged = notebook.check("3.4", "from starlette.middleware.base import BaseHTTPMiddleware\n" + "\n".join(lines))
    assert judged.state == ("almost", "ids_class") and judged.card.hint


def test_a_handler_for_exceptions_is_another_way(notebook: Notebook) -> None:
    """The middleware lets the exception pass, and a handler of hers answers it."""
    source = notebook.version("3.4", (f"response = {RESPONSE}", RAISED))
    handler = (
        "async def failed(request, error):\n"
        "    headers = {'X-Request-ID': request.state.request_id, 'X-Response-Time': '0.0010'}\n"
        "    return PlainTextResponse('Internal Server Error', 500, headers=headers)\n"
        "lab.app.add_exception_handler(Exception, failed)\n"
    )
    try:
        assert notebook.check("3.4", source + "\n" + handler).state == ("done", "ids_done")
    finally:
        del notebook.lab.app.exception_handlers[Exception]  # type: ignore[attr-defined]


# --- 3.7 the alert


RULE = '"error_rate", above=0.05, for_=2'
ALERTS: dict[str, tuple[str, str]] = {
    "for any error": ("alert_noise", '"error_rate", above=0, for_=2'),
    "at once": ("alert_blip", '"error_rate", above=0.05, for_=0'),
    "per cent": ("alert_deaf", '"error_rate", above=5, for_=2'),
    "milliseconds": ("alert_deaf", '"error_rate", above=0.05, for_=2000'),
    "durations": ("alert_deaf", '"p95", above=0.05, for_=2'),
    "ten seconds": ("alert_late", '"error_rate", above=0.05, for_=10'),
    "too high": ("alert_high", '"error_rate", above=0.15, for_=2'),
    "since the beginning": (
        "alert_stays",
        'lambda history: history.last.total("app_requests_total", status="500") > 70, above=0.5, for_=2',
    ),
}


@pytest.mark.parametrize(("key", "rule"), ALERTS.values(), ids=ALERTS)
def test_each_wrong_alert_has_a_sentence_of_its_own(notebook: Notebook, key: str, rule: str) -> None:
    judge(notebook, "3.7", key, [(RULE, rule)])


def test_what_is_no_alert_is_told(notebook: Notebook) -> None:
    judged = notebook.check("3.7", notebook.version("3.7", ("return Alert", "Alert")))
    assert judged.state == ("almost", "alert_type")


def test_three_seconds_are_near_enough(notebook: Notebook) -> None:
    assert notebook.check("3.7", notebook.version("3.7", ("for_=2", "for_=3"))).card.verdict == "done"
