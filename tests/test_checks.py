"""The verdict engine: every verdict, in the order of diagnosis, and nothing that gets out."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from labkit import settings
from labkit.course import cards, checks
from labkit.course.cards import LOOK, Card
from labkit.course.checks import Context, Verdict, almost, done, run_check, todo
from labkit.course.exercises import Exercise, Outline
from labkit.course.markers import fingerprints
from labkit.errors import RequestTimeout
from tests.cells import run

STARTER = "def total(items):\n    return 0\n"
EXERCISE = Exercise("1.1", "total", 5, fingerprints(STARTER))
PLAN = Outline("97_sample", 10, {"1.1": EXERCISE})


def check_total(ctx: Context, total: Callable[[list[int]], int]) -> Verdict:
    """A check as a lesson's: the body first, then the counts."""
    got = total([1, 2, 3])
    ctx.require(got == 6, "course.guess_kept", values=got)
    return done("course.guess_saved", values=got)


def judge(thing: Any, check: Any = check_total, **kwargs: Any) -> Card:
    return run_check(check, PLAN, EXERCISE, thing, **kwargs).card


def written(source: str) -> Any:
    return run(source)["total"]


# --- missing, wrong type, wrong body


@pytest.mark.parametrize("nothing", [None, ...])
def test_nothing_handed_in_is_still_to_do(nothing: Any) -> None:
    assert judge(nothing).verdict == "todo"


@pytest.mark.parametrize("thing", [3, "total", [1, 2]])
def test_a_value_instead_of_the_function_says_so(thing: Any) -> None:
    card = judge(thing)
    assert card.verdict == "almost" and type(thing).__name__ in card.message and "total" in card.message


def test_only_the_learners_own_function_is_judged() -> None:
    assert judge(sum).verdict == "almost"
    assert judge(check_total).verdict == "almost"
    assert judge(sum).message == cards.words("course.not_yours")


@pytest.mark.parametrize(
    "source",
    [STARTER, "def total( items ):  # mine\n    '''Sum.'''\n\n    return (0)\n", "import os\n" + STARTER],
)
def test_the_untouched_starter_is_to_do_and_shows_what_was_measured(source: str) -> None:
    card = judge(written(source))
    assert card.verdict == "todo"
    assert cards.words("course.guess_kept", values=0) in card.message and card.hint_key == ""


def test_a_starter_that_stops_is_to_do_as_well() -> None:
    stub = "def total(items):\n    raise NotImplementedError\n"
    exercise = Exercise("1.1", "total", 5, fingerprints(stub))
    assert run_check(check_total, PLAN, exercise, written(stub)).card.verdict == "todo"


def test_a_wrong_answer_is_almost_with_its_counts() -> None:
    card = judge(written("def total(items):\n    return len(items)\n"))
    assert (card.verdict, card.counts) == ("almost", {"values": 3})


def test_the_solution_is_done() -> None:
    assert judge(written("def total(items):\n    return sum(items)\n")).verdict == "done"


def test_a_decorated_function_is_known_by_what_it_wraps() -> None:
    wrapped = "import functools\n{}\ntotal = functools.lru_cache(total)\n"
    assert judge(written(wrapped.format(STARTER))).verdict == "todo"
    card = judge(written(wrapped.format("def total(items):\n    return sum(items)\n")))
    assert card.verdict == "error"  # a list cannot be hashed: her own doing


def test_verdicts_may_be_raised_or_returned() -> None:
    own = written("def total(items):\n    return 1\n")

    def raises(ctx: Context, thing: Any) -> Verdict:
        raise Verdict("inconclusive", "course.missing")

    assert judge(own, raises).verdict == "inconclusive"
    assert judge(own, lambda ctx, thing: todo("course.missing")).verdict == "todo"
    assert judge(own, lambda ctx, thing: Verdict("inconclusive", "course.missing")).verdict == "inconclusive"


# --- the learner's code stops


def test_an_exception_shows_the_learners_line_and_no_library() -> None:
    card = judge(written("import json\ndef total(items):\n    x = 1\n    return json.loads('{')\n"))
    assert card.verdict == "error" and "JSONDecodeError" in card.message
    assert ", in total" in card.code.replace(", en total", ", in total")
    assert "return json.loads" in card.code and "decoder.py" not in card.code


@pytest.mark.parametrize("stop", ["raise SystemExit(3)", "raise KeyboardInterrupt", "raise BaseException('x')"])
def test_nothing_that_the_learner_raises_gets_out(stop: str) -> None:
    assert judge(written(f"def total(items):\n    {stop}\n")).verdict == "error"


def test_endless_recursion_is_an_error_card() -> None:
    assert judge(written("def total(items):\n    return total(items)\n")).verdict == "error"


def test_a_fault_of_the_check_is_not_the_learners() -> None:
    own = written("def total(items):\n    return 1\n")
    card = judge(own, lambda ctx, thing: ctx.words("no_such_message"))
    assert card.verdict in ("error", "inconclusive")

    def wrong_values(ctx: Context, thing: Any) -> Verdict:
        return done("course.guess_saved", other=1)

    assert judge(own, wrong_values).verdict == "inconclusive"
    assert judge(own, lambda ctx, thing: 1 // 0).verdict in ("error", "inconclusive")
    assert judge(own, lambda ctx, thing: None).verdict == "inconclusive"
    assert judge(own, None).verdict == "error"


def test_an_error_of_labkit_is_told_as_it_stands() -> None:
    def slow(ctx: Context, thing: Any) -> Verdict:
        raise RequestTimeout("the request took longer than 30 s")

    # The check stands in a test file here, which counts as the user's code: only the sentence matters.
    card = judge(written("def total(items):\n    return 1\n"), slow)
    assert card.verdict == "error" and "longer than 30 s" in card.message + card.code


def test_a_check_that_hangs_is_ended() -> None:
    before = {thread for thread in threading.enumerate() if thread.name == "labkit-check"}
    card = judge(written("def total(items):\n    while True:\n        pass\n"), limit=0.3)
    assert card.verdict == "error" and card.message == cards.words("course.too_long", limit=0.3)
    deadline = time.monotonic() + 10
    while {t for t in threading.enumerate() if t.name == "labkit-check"} - before:
        assert time.monotonic() < deadline, "the thread of the check still runs"
        time.sleep(0.01)


def test_an_interrupt_ends_the_check_too() -> None:
    """On Python 3.11 an interrupted ``Thread.join`` marks the thread as ended while it still runs."""
    begun, ended = threading.Event(), threading.Event()

    def endless(ctx: Context, thing: Any) -> Verdict:
        try:
            begun.set()
            while True:
                time.sleep(0.01)
        finally:
            ended.set()

    def interrupt() -> None:
        begun.wait(10)
        time.sleep(0.2)  # until the caller waits for the check
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        judge(written("def total(items):\n    return 1\n"), endless)
    assert ended.wait(10)


def test_a_call_that_hangs_is_ended_long_before_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CALL_LIMIT", 0.3)
    own = written("def total(items):\n    while True:\n        pass\n")
    waiting = written("async def total(items):\n    import asyncio\n    await asyncio.sleep(60)\n")
    began = time.monotonic()
    for card in (
        judge(own, lambda ctx, total: ctx.call(total, [1]), limit=60),
        judge(waiting, lambda ctx, total: ctx.run(total, [1]), limit=60),
    ):
        assert card.verdict == "error" and card.message == cards.words("course.call_too_long", limit=0.3)
    assert time.monotonic() - began < 20


def test_many_calls_may_take_longer_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the check itself does between them has the limit of the whole."""
    monkeypatch.setattr(checks, "CALL_LIMIT", 0.4)

    def check(ctx: Context, total: Any) -> Verdict:
        time.sleep(0.6)
        for _ in range(6):
            ctx.call(total, [1])
        return done("course.missing")

    own = written("import time\ndef total(items):\n    time.sleep(0.1)\n")
    assert judge(own, check, limit=60).verdict == "done"


def test_time_in_which_the_machine_stood_still_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop that slept for an hour in the middle of a call: one look at the clock, an hour later."""
    slept = itertools.chain([0.0, 0.1, 3600.1], itertools.count(3600.2, 0.1))
    monkeypatch.setattr(checks, "time", SimpleNamespace(monotonic=lambda: next(slept)))
    own = written("import time\ndef total(items):\n    time.sleep(0.35)\n    return 6\n")
    card = judge(own, lambda ctx, total: done("course.guess_saved", values=ctx.call(total, [1])), limit=60)
    assert card.verdict == "done"


def test_parameters_that_do_not_fit_are_told() -> None:
    card = judge(written("def total():\n    return 6\n"), lambda ctx, total: ctx.call(total, [1]))
    assert (card.verdict, card.counts) == ("almost", {"name": "total", "wanted": "()", "given": 1})


def test_a_check_may_run_coroutines_where_a_loop_is_running() -> None:
    def check(ctx: Context, total: Any) -> Verdict:
        ctx.require(ctx.run(total, [1, 2]) == 3, "course.missing")
        return done("course.missing")

    async def notebook() -> Card:
        return judge(written("async def total(items):\n    return sum(items)\n"), check)

    assert asyncio.run(notebook()).verdict == "done"


# --- the Lab, the seed, hints


def test_an_endpoint_that_raises_is_the_learners_line() -> None:
    lab = SimpleNamespace(request=lambda method, path: SimpleNamespace(error="cell [3], line 2", status=500))
    card = judge(written("def total(items):\n    return 1\n"), lambda ctx, thing: ctx.answer("/x"), lab=lab)
    assert (card.verdict, card.code) == ("error", "cell [3], line 2")


def test_without_a_lab_the_card_says_how_to_get_one() -> None:
    card = judge(written("def total(items):\n    return 1\n"), lambda ctx, thing: ctx.lab)
    assert card.verdict == "error" and "lab=lab" in card.message + card.code


def test_the_seed_is_new_each_time_shown_when_it_matters_and_can_be_given() -> None:
    seeds: list[int] = []

    def check(ctx: Context, thing: Any) -> Verdict:
        seeds.append(ctx.seed)
        return (done if thing([1]) else almost)("course.missing")

    wrong, right = written("def total(x):\n    return ()\n"), written("def total(x):\n    return x\n")
    cards_ = [judge(wrong, check) for _ in range(5)]
    assert len(set(seeds)) > 1 and all(str(seed) in c.note for seed, c in zip(seeds, cards_, strict=True))
    assert "4711" in judge(wrong, check, seed=4711).note and seeds[-1] == 4711
    assert judge(right, check).note == ""


def test_a_wrong_answer_gets_the_hint_of_its_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "lesson_97.off_by_one": "One too many: {got}.",
        "lesson_97.off_by_one_hint": "Look at the range.",
    }

    def fake(key: str, lang: str | None = None, **values: Any) -> str:
        return found[key].format(**values) if key in found else real(key, lang, **values)

    real = cards.words
    monkeypatch.setattr("labkit.course.checks.words", fake)
    monkeypatch.setattr("labkit.course.checks.has", lambda key: key in found)
    own = written("def total(items):\n    return 7\n")
    card = judge(own, lambda ctx, total: almost("off_by_one", got=total([])))
    assert (card.message, card.hint_key, card.hint) == (
        "One too many: 7.",
        "lesson_97.off_by_one_hint",
        "Look at the range.",
    )


# --- cards


@pytest.mark.parametrize("language", ["es", "en"])
def test_each_verdict_has_a_word_a_shape_and_a_colour_of_its_own(language: str) -> None:
    settings.set_language(language)
    shown = [Card(state, "x") for state in LOOK]
    assert len({card.heading for card in shown}) == len(set(LOOK.values())) == 5
    for card, (symbol, colour) in zip(shown, LOOK.values(), strict=True):
        assert repr(card).startswith(f"{symbol} {card.heading}")
        html = card._repr_html_()
        assert symbol in html and colour in html and card.heading in html


def test_a_card_escapes_what_the_learner_wrote() -> None:
    card = Card("error", "<b>`<i>`", code="<script>", title="<u>", hint="<s>", note="<p>")
    html = card._repr_html_()
    for bad in ("<b>", "<i>", "<script>", "<u>", "<s>", "<p>"):
        assert bad not in html
    assert "<code" in html
