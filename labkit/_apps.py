"""Find the application under study and say what is wrong with it before the first request does."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from difflib import get_close_matches
from typing import Any

from labkit._frames import describe
from labkit._text import say
from labkit.errors import AppError


def check_app(app: Any, name: str) -> Any:
    """Return ``app`` if it is an ASGI application.

    Raises:
        AppError: if it is something else; names what it looks like (a factory, a WSGI application, a module).
    """
    if not callable(app):
        raise AppError(say("core.not_an_app", name=name, kind=type(app).__name__))
    if isinstance(app, type):
        raise AppError(say("core.app_class", name=name))
    try:
        signature = inspect.signature(app)
    except (TypeError, ValueError):
        return app  # built in C: let it try
    try:
        signature.bind({}, None, None)
    except TypeError:
        needed = [p for p in signature.parameters.values() if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
        raise AppError(say("core.not_asgi" if needed else "core.factory", name=name)) from None
    return app


def load_app(target: str) -> Any:
    """Import the application behind ``"package.module:attribute"``; the current folder counts as importable.

    Raises:
        AppError: if the module, the attribute or the application in it is not there or does not work.
    """
    module_name, colon, attribute = target.partition(":")
    if not (colon and module_name and attribute):
        raise AppError(say("core.bad_target", target=target))
    if os.getcwd() not in sys.path:  # noqa: PTH109  (as uvicorn does; jupyter and python -m have it already)
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        module: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise AppError(say("core.no_module", module=module_name, folder=os.getcwd())) from None  # noqa: PTH109
        raise AppError(say("core.import_failed", target=target, reason=describe(error))) from error
    except (Exception, SystemExit) as error:
        raise AppError(say("core.import_failed", target=target, reason=describe(error))) from error
    app = module
    for part in attribute.split("."):
        if not hasattr(app, part):
            near = get_close_matches(part, [n for n in dir(app) if not n.startswith("_")], 3, 0.5)
            hint = say("core.did_you_mean", names=", ".join(near)) if near else ""
            raise AppError(say("core.no_attribute", module=module_name, attribute=attribute, hint=hint))
        app = getattr(app, part)
    return check_app(app, target)
