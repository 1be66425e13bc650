"""Logs: what is written can be read again whatever was logged, under the request's id, and without passwords."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.cache import Event
from labkit.errors import MonitoringError
from labkit.monitoring.ids import request_id
from labkit.monitoring.logs import COMPONENTS, Journal, RequestId, cache_observer, configure, mask

SECRET = "hunter2"
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too


class Mute:
    """Nobody can show it."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody's handlers, and the levels as they are at the start of a process."""
    add = logging.root.addHandler
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "addHandler", lambda one: type(one).__module__ == "_pytest.logging" or add(one))
    for name in ("LABKIT_LOG", "LABKIT_LOG_FORM"):
        monkeypatch.delenv(name, raising=False)
    names = ("labkit", "shop", *(f"labkit.{name}" for name in COMPONENTS))
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.NOTSET)
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def under() -> Iterator[str]:
    token = request_id.set("3f2a9c10b7e8d6f5")
    yield request_id.get()
    request_id.reset(token)


def lines(form: Any, *calls: Any, level: str = "DEBUG") -> list[str]:
    """What is written when these are logged."""
    stream = io.StringIO()
    configure(level=level, form=form, stream=stream)
    for call in calls:
        call()
    return stream.getvalue().splitlines()


def parsed(line: str) -> dict[str, Any]:
    """A line as any program reads it: JSON has no NaN, though Python would write and read one."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON: {line}")

    said: dict[str, Any] = json.loads(line, parse_constant=refuse)
    return said


def log(component: str, level: int = logging.INFO, message: Any = "x", *args: Any, **options: Any) -> Any:
    return lambda: logging.getLogger(f"labkit.{component}").log(level, message, *args, **options)


# --- JSON --------------------------------------------------------------------------------------------------------


def test_a_line_of_json_says_what_happened(under: str) -> None:
    extra = {"seconds": 0.25, "status": 200, "path": "/users/{id}", "cached": False, "nothing": None}
    (line,) = lines("json", log("http", logging.INFO, "%s took %d ms", "GET", 250, extra=extra))
    said = parsed(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", said.pop("time"))
    assert said == {"level": "INFO", "component": "http", "request_id": under, "message": "GET took 250 ms", **extra}


def test_an_error_brings_its_traceback() -> None:
    def fail() -> None:
        try:
            raise ValueError(f"connect to postgresql://shop:{SECRET}@db.internal/orders")
        except ValueError:
            logging.getLogger("labkit.health").exception("database")

    said = parsed(*lines("json", fail))
    assert said["error"].startswith("Traceback") and "db.internal" in said["error"]
    assert said["error"].endswith("ValueError: connect to postgresql://shop:***@db.internal/orders")


@settings(deadline=None)
@given(ANY_TEXT, st.dictionaries(st.from_regex(r"\A[a-z]{1,8}\Z"), st.one_of(st.floats(), st.integers(), ANY_TEXT)))
def test_json_comes_back_whatever_was_logged(message: str, extra: dict[str, Any]) -> None:
    taken = {"name", "msg", "args", "module", "lineno", "created", "msecs", "thread", "process", "message", "asctime"}
    extra = {name: value for name, value in extra.items() if name not in taken}
    (line,) = lines("json", log("http", logging.INFO, "%s", message, extra=extra))
    said = parsed(line)
    assert said["message"] == mask(message)
    for name, value in extra.items():
        name = f"{name}_" if name in ("time", "level", "component", "error") else name
        plain = isinstance(value, str) or (type(value) is int and abs(value) < 2**63)
        assert said[name] == (mask(value) if isinstance(value, str) else value if plain else said[name])


@pytest.mark.parametrize("form", ["human", "json"])
@pytest.mark.parametrize(
    ("message", "args"),
    [
        ("%d", ("not a number",)),
        ("%s and %s", ("one",)),
        ("%s", (Mute(),)),
        (Mute(), ()),
        ({"a": object()}, ()),
        ("%(missing)s", ({"a": 1},)),
        (None, ()),
        (b"\xff", ()),
        ("%s", (10**5000,)),
    ],
)
def test_what_cannot_be_shown_is_still_a_line(
    form: Any, message: Any, args: tuple[Any, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal()
    logging.root.addHandler(journal)
    extra = {"thing": Mute(), "number": 10**5000, "mean": float("nan"), "list": [Mute()], "loop": threading.Lock()}
    (line,) = lines(form, log("sql", logging.INFO, message, *args, extra=extra))
    assert "sql" in line
    assert len(journal.df) == 1
    assert capsys.readouterr().err == ""  # logging says there what it could not write


@pytest.mark.parametrize("form", ["human", "json"])
def test_records_that_nobody_but_a_program_makes_are_still_lines(form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever logs never gets to know of it: a journal that raised would have failed a request."""
    journal = Journal()
    odd = [{"name": None}, {"exc_text": 5}, {"stack_info": Mute()}, {"exc_info": "none"}, {"args": 3}]
    records = [logging.makeLogRecord({"name": "labkit.sql", "levelno": 20, "msg": "m", **each}) for each in odd]
    written = lines(form, *[partial(logging.getLogger("labkit.sql").handle, record) for record in records])
    for record in records:
        journal.handle(record)
    assert len(journal.df) == len(odd) and sum(" m" in line or '"m' in line for line in written) == len(odd)
    assert capsys.readouterr().err == ""


def test_fields_never_hide_what_every_line_has(under: str) -> None:
    extra = {"time": 1, "level": 2, "component": 3, "error": 4}
    said = parsed(*lines("json", log("cache", logging.INFO, "m", extra=extra)))
    assert (said["level"], said["component"], said["message"]) == ("INFO", "cache", "m")
    assert [said[f"{name}_"] for name in extra] == [1, 2, 3, 4]


# --- for people --------------------------------------------------------------------------------------------------


def test_lines_for_people_are_short_and_aligned(under: str) -> None:
    calls = [log(name, level, "m") for name, level in zip(COMPONENTS, (10, 20, 30, 40, 50), strict=True)]
    written = lines("human", *calls)
    assert {line.index(" m") for line in written} == {38}
    assert all(re.match(r"\d\d:\d\d:\d\d\.\d{3} [A-Z]+ +[a-z]+ +3f2a9c10 ", line) for line in written)
    request_id.set("")
    assert re.search(r" http    -        m$", *lines("human", log("http", logging.INFO, "m")))


@settings(deadline=None)
@given(ANY_TEXT)
def test_no_message_passes_for_two_lines_nor_moves_the_cursor(message: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    configure(level="INFO", stream=stream)
    logging.getLogger("labkit.http").info("%s", message)
    stream.seek(0)
    first, *others = stream.read().removesuffix("\n").split("\n")
    assert " INFO     http    " in first
    assert all(line.startswith("    ") for line in others)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", "".join([first, *others]))


def test_a_stream_that_knows_few_letters_gets_the_rest_escaped() -> None:
    raw = io.BytesIO()
    configure(stream=io.TextIOWrapper(raw, encoding="ascii"))
    logging.getLogger("labkit.http").info("señal \ud800")
    assert raw.getvalue().endswith(b"se\\xf1al \\ud800\n")


# --- levels ------------------------------------------------------------------------------------------------------


def heard() -> set[str]:
    """The components and their lowest level, as far as it is not INFO."""
    found = {name: logging.getLogger(f"labkit.{name}").getEffectiveLevel() for name in COMPONENTS}
    return {f"{name}={logging.getLevelName(level)}" for name, level in found.items() if level != logging.INFO}


@pytest.mark.parametrize(
    ("setting", "arguments", "expected"),
    [
        ("", {}, set()),
        ("", {"levels": {"sql": "debug"}}, {"sql=DEBUG"}),
        ("", {"levels": {"sql": 10, "cache": "Error"}}, {"sql=DEBUG", "cache=ERROR"}),
        ("sql=debug", {}, {"sql=DEBUG"}),
        (" sql = debug , http=WARNING,", {}, {"sql=DEBUG", "http=WARNING"}),
        ("debug,http=info", {}, {f"{name}=DEBUG" for name in COMPONENTS} - {"http=DEBUG"}),
        ("warning,sql=debug", {"level": "INFO"}, {"sql=DEBUG"}),  # an argument goes before the environment
        ("sql=debug", {"levels": {"sql": "ERROR"}}, {"sql=ERROR"}),
    ],
)
def test_levels_come_from_arguments_and_environment(
    monkeypatch: pytest.MonkeyPatch, setting: str, arguments: dict[str, Any], expected: set[str]
) -> None:
    monkeypatch.setenv("LABKIT_LOG", setting)
    configure(**arguments)
    assert heard() == expected
    monkeypatch.delenv("LABKIT_LOG")
    configure()  # what was said before counts no more
    assert heard() == set()


@pytest.mark.parametrize(
    ("setting", "arguments", "words"),
    [
        ("loud", {}, ["LABKIT_LOG='loud'", "debug, info, warning"]),
        ("sql=loud", {}, ["LABKIT_LOG: sql='loud'", "debug, info, warning"]),
        ("sql=", {}, ["LABKIT_LOG: sql=''"]),
        ("slq=debug", {}, ["LABKIT_LOG", "'slq'", "http, sql, cache, health, alerts", "logging.getLogger('slq')"]),
        ("", {"level": "loud"}, ["level='loud'"]),
        ("", {"level": True}, ["level=True"]),
        ("", {"level": -1}, ["level=-1"]),
        ("", {"level": 1.5}, ["level=1.5"]),
        ("", {"levels": {"http": None}}, ["levels['http']=None"]),
        ("", {"levels": {"slq": "debug"}}, ["levels", "'slq'"]),
        ("", {"levels": {7: "debug"}}, ["levels", "7"]),
        ("", {"form": "xml"}, ["form='xml'", "human", "json"]),
    ],
)
@pytest.mark.parametrize("lang", ["es", "en"])
def test_what_cannot_be_is_refused_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, setting: str, arguments: dict[str, Any], words: list[str], lang: str
) -> None:
    configure(level="ERROR", stream=(stream := io.StringIO()))
    monkeypatch.setenv("LABKIT_LANG", lang)
    monkeypatch.setenv("LABKIT_LOG", setting)
    with pytest.raises(MonitoringError) as refused:
        configure(**arguments)
    assert all(word in str(refused.value) for word in words), refused.value
    assert heard() == {f"{name}=ERROR" for name in COMPONENTS}
    log("http", logging.ERROR, "still")()
    assert stream.getvalue().count("still") == 1


def test_the_form_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_LOG_FORM", "json")
    assert parsed(*lines(None, log("http")))["component"] == "http"
    assert not lines("human", log("http"))[0].startswith("{")
    monkeypatch.setenv("LABKIT_LOG_FORM", "xml")
    with pytest.raises(MonitoringError, match="LABKIT_LOG_FORM='xml'"):
        configure()


def test_twice_is_as_good_as_once_and_leaves_others_alone(capsys: pytest.CaptureFixture[str]) -> None:
    other = logging.StreamHandler(theirs := io.StringIO())
    logging.root.addHandler(other)
    first = io.StringIO()
    for stream in (first, None, None):
        configure(stream=stream)
    log("http", logging.INFO, "once")()
    assert first.getvalue() == ""
    assert capsys.readouterr().err.count("once") == 1
    assert theirs.getvalue() == "once\n"


def test_stderr_is_the_one_of_that_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    configure()
    monkeypatch.setattr("sys.stderr", later := io.StringIO())
    log("http", logging.INFO, "there")()
    assert "there" in later.getvalue()


def test_loggers_of_ones_own_get_the_id_and_a_level(under: str) -> None:
    shop = logging.getLogger("shop")
    stream = io.StringIO()
    configure(form="json", stream=stream)
    shop.info("quiet: nobody asked for it")
    shop.warning("sold out")
    configure(form="json", stream=stream, levels={"shop": "DEBUG"})
    shop.debug("now")
    said = [parsed(line) for line in stream.getvalue().splitlines()]
    assert [(one["component"], one["message"], one["request_id"]) for one in said] == [
        ("shop", "sold out", under),
        ("shop", "now", under),
    ]


def test_a_handler_of_ones_own_gets_the_id(under: str) -> None:
    handler = logging.StreamHandler(stream := io.StringIO())
    handler.setFormatter(logging.Formatter("%(request_id)s %(message)s"))
    handler.addFilter(RequestId())
    logging.root.addHandler(handler)
    logging.getLogger("shop").warning("a")
    logging.getLogger("shop").warning("b", extra={"request_id": "given"})
    assert stream.getvalue() == f"{under} a\ngiven b\n"


# --- secrets -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at postgresql+psycopg://shop:hunter2@db:5432/x", "at postgresql+psycopg://shop:***@db:5432/x"),
        ("redis://:hunter2@h/0 and rediss://u:hunter2@h", "redis://:***@h/0 and rediss://u:***@h"),
        ("x://u:p%40hunter2%2F@h/0", "x://u:***@h/0"),
        ("x://u:p@hunter2@h/0", "x://u:***@h/0"),
        ("x://u:p/hunter2@h/0", "x://u:***@h/0"),
        ('"x://u:hunter2@h"', '"x://u:***@h"'),
        ("host=h password=hunter2 user=u", "host=h password=*** user=u"),
        ("password='hunter2 hunter2' x", "password=*** x"),
        ("{'password': 'hunter2', 'a': 1}", "{'password': ***, 'a': 1}"),
        ('{"Password": "hunter2"}', '{"Password": ***}'),
        ("unix:///s?db=0&password=hunter2&x=1", "unix:///s?db=0&password=***&x=1"),
        ("PGPASSWORD=hunter2", "PGPASSWORD=***"),
    ],
)
def test_passwords_are_masked(text: str, expected: str) -> None:
    assert mask(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost:8000/users?email=a@b.c",
        "http://127.0.0.1:8000/@me",
        "GET /a:b@c",
        "redis://localhost:6379/0",
        "password authentication failed for user shop",
        "user@example.com: hello",
        "x://user@host/db",
    ],
)
def test_what_is_no_password_is_left(text: str) -> None:
    assert mask(text) == text


def test_a_hostile_line_is_masked_in_time() -> None:
    for text in ("://:" * 50_000, "://a:" + "x" * 200_000, "password=" * 30_000, "://" + ":" * 200_000):
        mask(text)


@settings(deadline=None)
@given(
    user=st.text("abc%20.-", max_size=5),
    secret=st.text(min_size=6, max_size=40),
    form=st.sampled_from(["human", "json"]),
)
def test_no_password_of_an_address_is_ever_written(user: str, secret: str, form: Any) -> None:
    secret = f"S3{quote(secret, safe='')}"
    address = f"postgresql://{user}:{secret}@db:5432/shop?x=1"
    with Journal() as journal:

        def fail() -> None:
            try:
                raise ValueError(address)
            except ValueError as error:
                text = f"see {address!r}, {{'dsn': '{address}'}}"
                logging.getLogger("labkit.health").error(text, exc_info=error, extra={"dsn": address, "all": [address]})

        written = "\n".join(lines(form, fail))
        assert secret not in written and "***" in written
        assert secret not in journal.df.to_csv()


# --- in memory ---------------------------------------------------------------------------------------------------


def test_a_journal_is_a_table_to_filter(under: str) -> None:
    with Journal() as journal:
        configure(level="DEBUG", stream=io.StringIO())
        log("sql", logging.DEBUG, "statement", extra={"seconds": 0.5})()
        log("http", logging.ERROR, "failed", extra={"status": 500})()
        logging.getLogger("shop").warning("sold out")
    log("http", logging.ERROR, "after the end")()
    df = journal.df
    assert [*df.columns] == ["time", "level", "component", "request_id", "message", "error", "seconds", "status"]
    assert [*df["message"]] == ["statement", "failed", "sold out"]
    assert [*df[df["level"] >= "WARNING"]["component"]] == ["http", "shop"]
    assert [*df[df["component"] == "sql"]["seconds"]] == [0.5]
    assert df[df["request_id"] == under].shape == (3, 8)
    assert str(df["time"].dtype).startswith("datetime64") and str(df["time"].dt.tz) == "UTC"
    assert repr(journal) == "<Journal 3>"
    journal.clear()
    assert journal.df.empty and [*journal.df.columns][:3] == ["time", "level", "component"]
    assert (journal.df["level"] >= "WARNING").empty


def test_a_level_of_ones_own_has_its_place() -> None:
    with Journal() as journal:
        for level in (35, logging.ERROR, logging.INFO):
            log("http", level, "m")()
    df = journal.df
    assert [*df[df["level"] >= "WARNING"]["level"]] == ["Level 35", "ERROR"]


def test_a_journal_keeps_the_last_ones_from_many_threads() -> None:
    with Journal(size=100) as journal:
        threads = [
            threading.Thread(target=lambda n=n: [log("http", 20, "%d", n * 1_000 + i)() for i in range(200)])
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert len(journal.df) <= 100
        for thread in threads:
            thread.join()
    assert len(journal.entries) == 100
    for n in range(8):
        mine = [int(one.message) for one in journal.entries if int(one.message) // 1_000 == n]
        assert mine == sorted(mine)


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None, "10"])
def test_a_journal_has_a_size(size: Any) -> None:
    with pytest.raises(MonitoringError, match=f"size={size!r}"):
        Journal(size)


def test_a_journal_keeps_nothing_alive_and_nothing_long() -> None:
    class Session:
        pass

    session = Session()
    gone = weakref.ref(session)
    with Journal() as journal:
        log("sql", 20, "%s", session, extra={"session": session})()
        log("sql", 20, "%s", "x" * 1_000_000, extra={"body": "y" * 1_000_000})()
        del session
        assert gone() is None
        long = journal.entries[1]
        assert len(long.message) < 10_000 and len(long.fields["body"]) < 10_000


def test_the_components_speak_inside_a_journal_and_not_after_it() -> None:
    http = logging.getLogger("labkit.http")
    assert not http.isEnabledFor(logging.INFO)
    with Journal():
        with Journal():
            assert http.isEnabledFor(logging.INFO)
        assert http.isEnabledFor(logging.INFO)
    assert not http.isEnabledFor(logging.INFO)
    first, second = Journal(), Journal()
    first.__enter__()
    second.__enter__()
    first.__exit__()
    assert http.isEnabledFor(logging.INFO)
    second.__exit__()
    assert not http.isEnabledFor(logging.INFO)
    assert logging.root.handlers == []
    configure(level="ERROR", stream=io.StringIO())
    with Journal():
        assert not http.isEnabledFor(logging.INFO)  # somebody said so


def test_a_journal_silences_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(), Journal():
        logging.getLogger("shop").warning("to stderr, as without journals")
        logging.getLogger("shop").info("nor this")
        log("health", logging.ERROR, "ours is kept")()
    written = capsys.readouterr().err
    assert written == "to stderr, as without journals\n"
    with Journal():
        configure(stream=(stream := io.StringIO()))
        logging.getLogger("shop").warning("once")
    assert capsys.readouterr().err == "" and stream.getvalue().count("once") == 1


def test_whoever_configures_no_logging_is_not_written_to() -> None:
    code = "import logging, labkit.monitoring; logging.getLogger('labkit.sql').warning('slow statement')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == done.stdout == ""


# --- the cache ---------------------------------------------------------------------------------------------------


def test_what_the_cache_does_is_logged() -> None:
    events = [
        Event("hit", "views.user", "user:1", 0.001),
        Event("miss", "views.user", "user:2", 0.1),
        Event("breaker", "", "", 0.0, "open connection refused"),
        Event("breaker", "", "", 0.0, "closed"),
    ]
    with Journal() as journal:
        for event in events:
            cache_observer(event)
        assert [*journal.df["message"]] == ["breaker open connection refused", "breaker closed"]
        configure(levels={"cache": "DEBUG"}, stream=io.StringIO())
        for event in events:
            cache_observer(event)
    last = journal.df.tail(4)
    assert [*last["level"]] == ["DEBUG", "DEBUG", "WARNING", "WARNING"]
    assert set(last["component"]) == {"cache"}
    assert last.iloc[0][["message", "kind", "function", "key", "seconds"]].to_list() == [
        "hit views.user",
        "hit",
        "views.user",
        "user:1",
        0.001,
    ]
