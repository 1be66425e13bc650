"""Look into threads that do not come back, and make them: where they stand, whose they are, stop them."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
import time
from collections.abc import Callable
from contextvars import Context, ContextVar
from types import FrameType
from typing import Any

from labkit._frames import is_user_frame, place, user_site

_WRAPPERS = ("async_generator_asend", "async_generator_athrow", "coroutine_wrapper")
_POOLS = ("WorkerThread.run", "_WorkItem.run")  # of anyio, where plain ``def`` endpoints run; of the loop's executor
_LAST = ("_bootstrap", "<module>")  # the outermost frames of most threads
_REPORTING = ("asyncio.base_events", "queue", "concurrent.futures._base")  # what they call between two jobs


class Stopped(BaseException):
    """Thrown into a thread that ran past its limit. Not an Exception, so that ``except`` lets it pass."""


def stop(thread: int) -> None:
    """Throw ``Stopped`` into the Python code of the thread with this identifier.

    It arrives at the next bytecode: a pure Python loop ends at once, a blocking call in C when it returns.
    """
    _throw(thread)
    if sys.version_info < (3, 12):
        calm = threading.Thread(target=_calm, name="labkit-calm")
        calm.start()
        calm.join()


def _throw(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Stopped))


def _calm() -> None:
    """Take back the flag that Python 3.11 shows to all threads while one of them has an exception to come.

    As long as that thread is blocked in C, any other that is profiled or traced spins for ever at the start of a
    function (``handle_eval_breaker`` in ceval.c). Whoever gets an exception of its own clears the flag for all;
    the blocked thread raises it anew when it wakes.
    """
    try:
        _throw(threading.get_ident())
        while True:
            time.sleep(0)
    except Stopped:
        pass


def immortal(task: Any) -> None:
    """Keep a task and its coroutine for good, past the interpreter's own end.

    To collect a coroutine is to run its ``finally`` and ``except`` blocks: in another thread, without its loop,
    and forever if they catch everything. A list of a module would be cleared at the exit, a reference is not.
    """
    for thing in (task, task.get_coro()):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def workers(mine: Callable[[Context], bool]) -> list[int]:
    """The threads of a pool that work in a context of ``mine``.

    One that is done and reports so is none of them: an exception thrown in there would end the thread.
    """
    found = []
    for thread in sys._current_frames():
        frame, inner = _job(thread)
        if frame is not None:
            context = _context(frame, inner)
            module = inner.f_globals.get("__name__", "") if inner is not None else ""
            if isinstance(context, Context) and mine(context) and module not in _REPORTING:
                found.append(thread)
    return found


def _job(thread: int) -> tuple[FrameType | None, FrameType | None]:
    """The frame of a pool that a thread is in, and what that called; None where there is no such frame."""
    for _ in range(20):
        inner, here = None, sys._current_frames().get(thread)
        while here is not None and here.f_code.co_qualname not in _POOLS:
            inner, here = here, here.f_back
        if here is not None or inner is None or inner.f_code.co_name in _LAST:
            return here, inner
        # A frame that has ended meanwhile has no caller: look again.
    return None, None


def _context(frame: FrameType, inner: FrameType | None) -> Any:
    """The context that a pool's frame runs its job in, as far as there is Python in the job."""
    if frame.f_code.co_qualname == "WorkerThread.run":
        return frame.f_locals.get("context")
    job = frame.f_locals.get("self")  # see _home._Threads: what it calls is Context.run
    return getattr(getattr(job, "fn", None), "__self__", None) if inner is not None else None


def value(task: Any, variable: ContextVar[Any]) -> Any:
    """What a context variable holds for a task of any thread; None if nothing."""
    if hasattr(task, "get_context"):  # Python >= 3.12
        return task.get_context().get(variable)
    return next((c.get(variable) for c in gc.get_referents(task) if isinstance(c, Context)), None)


def at_thread(thread: int) -> str:
    """``cell [5], line 6``: the user's line that a thread is in, or an empty string."""
    site = user_site(sys._current_frames().get(thread))
    return site.place if site else ""


def at_task(task: Any) -> str:
    """The user's line that a suspended task waits in, or an empty string."""
    step, found = task.get_coro(), ""
    while step is not None:
        frame = _first(step, "cr_frame", "ag_frame", "gi_frame")
        if frame is not None and is_user_frame(frame.f_code.co_filename, frame.f_globals.get("__name__")):
            found = place(frame)
        elif frame is not None and frame.f_code.co_qualname.endswith("__call__.<locals>.call_next"):
            found = ""  # a middleware of Starlette's: the rest of the application has a task of its own
        if type(step).__name__ in _WRAPPERS:  # these do not say what they wrap, the garbage collector does
            step = next((t for t in gc.get_referents(step) if hasattr(t, "ag_frame") or hasattr(t, "cr_frame")), None)
        else:
            step = _first(step, "cr_await", "ag_await", "gi_yieldfrom")
    return found


def _first(thing: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(thing, name, None)) is not None), None)
