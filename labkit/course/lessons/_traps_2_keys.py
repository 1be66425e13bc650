"""Traps of Exercise 2 that lie in the key: what must not be in it, what must, and what reads it."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import redis
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from labkit.blog import User
from labkit.course.checks import Context, Verdict
from labkit.course.lessons._traps_2_store import small_blog, without_keys
from labkit.course.trapcard import Found, judged

CHANGES = 60
PROCESSES = 6
READS = 3

Function = Callable[..., Any]


class Users:
    """A namesake below: the two functions are two questions."""

    @staticmethod
    def find(*words: Any) -> None: ...


class Posts:
    @staticmethod
    def find(*words: Any) -> None: ...


Question = tuple[Function, tuple[Any, ...]]
PAIRS: tuple[tuple[Question, Question], ...] = (
    *(
        ((Users.find, one), (Users.find, other))
        for one, other in (
            ((1,), ("1",)),
            ((None,), ("None",)),
            ((True,), ("True",)),
            (("ana", "id:7"), ("ana:id", "7")),
            ((["a", "b"],), ("['a', 'b']",)),
        )
    ),
    ((Users.find, (7,)), (Posts.find, (7,))),
)


def t24(ctx: Context, trap: Any, cure: Any) -> Found:
    """The session in the key: reads, each after a change, that get an older name."""
    with small_blog(users=7) as engine, without_keys(ctx, "t24"):
        stale, cured = (_stale(ctx, engine, *functions) for functions in (trap, cure))
    return judged(stale, cured, bad=lambda n: n > 0, changes=CHANGES)


def _stale(ctx: Context, engine: Engine, read: Function, forget: Function) -> int:
    def change(name: str) -> None:
        with Session(engine) as db:
            db.execute(update(User).where(User.id == 7).values(username=name))
            db.commit()

    def seen() -> Any:
        with Session(engine) as db, ctx.limited():  # gone on return: its address is free for the next one
            return read(7, db)

    stale = 0
    for number in range(CHANGES):
        change(f"name {number}")
        ctx.call(forget, 7)
        stale += seen() != f"name {number}"
    return stale


def t27(ctx: Context, trap: Any, cure: Any) -> Found:
    """Keys made of text: pairs of different questions with one key."""

    def alike(make_key: Function) -> int:
        keys = [[ctx.call(make_key, function, *words) for function, words in pair] for pair in PAIRS]
        return sum(one == other for one, other in keys)

    return judged(alike(trap), alike(cure), bad=lambda n: n > 0, pairs=len(PAIRS))


def t28(ctx: Context, trap: Any, cure: Any) -> Found:
    """The salt of ``hash``: different keys for one question, in as many processes."""
    return judged(_keys(trap), _keys(cure), bad=lambda n: n > 1, processes=PROCESSES)


def _keys(make_key: Function) -> int:
    question = f"print({make_key.__name__}({{'status': 'active'}}))"
    program = "\n".join(["import json", inspect.getsource(make_key), question])
    argv = [sys.executable, "-I", "-c", program]  # -I: without a PYTHONHASHSEED, which would take the salt out
    running = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    answers = [process.communicate() for process in running]
    for process, (_, complaint) in zip(running, answers, strict=True):
        if process.returncode:
            raise Verdict("error", "course.raised", type="Python", code=complaint)
    return len({answer for answer, _ in answers})


_ran: list[str] = []


def _intrude() -> None:
    """What the intruder's bytes run: here it only counts."""
    _ran.append("ran")


class _Intruder:
    def __reduce__(self) -> tuple[Function, tuple[()]]:
        return _intrude, ()


def t31(ctx: Context, trap: Any, cure: Any) -> Found:
    """``pickle.loads`` of what lies in Redis: how often a foreign function runs in some reads."""
    with without_keys(ctx, "t31"), redis.Redis.from_url(ctx.lab.redis.url) as store:
        store.set("t31", pickle.dumps(_Intruder()))
        counts = []
        for load in (trap, cure):
            _ran.clear()
            for _ in range(READS):
                ctx.call(load, "t31")
            counts.append(len(_ran))
    return judged(*counts, bad=lambda n: n > 0, reads=READS)
