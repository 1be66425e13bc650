"""Whose line is it, and what is it called."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastapi
import pytest

import labkit
from labkit import _frames, settings
from labkit._frames import Site, describe, is_user_frame, place, user_site, user_traceback

LABKIT = Path(labkit.__file__).parent


@pytest.mark.parametrize(
    ("filename", "module", "mine"),
    [
        (json.__file__, "json", False),
        (threading.__file__, "threading", False),
        (fastapi.__file__, "fastapi", False),
        (str(LABKIT / "lab.py"), "labkit.lab", False),
        (str(LABKIT / "course" / "checks.py"), "labkit.course.checks", False),
        (str(LABKIT / "blog" / "performance.py"), "labkit.blog.performance", True),
        ("/usr/lib/python3/dist-packages/thing/a.py", "thing.a", False),
        (str(Path(sys.executable).parent / "uvicorn"), "__main__", False),
        ("<frozen importlib._bootstrap>", "importlib._bootstrap", False),
        ("<string>", "sqlalchemy.orm.x", False),
        ("<string>", "__main__", True),
        ("<stdin>", "__main__", True),
        ("<ipython-input-3-abc>", "__main__", True),
        ("<cell 4>", "__main__", True),
        ("/tmp/ipykernel_12/345.py", "__main__", True),
        (__file__, __name__, True),
        ("app/main.py", "app.main", True),
    ],
)
def test_whose_file_it_is(filename: str, module: str, mine: bool) -> None:
    assert is_user_frame(filename, module) is mine


def test_a_link_out_of_the_packages_is_still_a_package(tmp_path: Path) -> None:
    real = tmp_path / "cache" / "site-packages" / "thing.py"
    link = tmp_path / "app" / "thing.py"
    for path in (real, link):
        path.parent.mkdir(parents=True)
    real.touch()
    link.symlink_to(real)
    assert not is_user_frame(str(link)) and not is_user_frame(str(real))


def test_the_site_is_the_innermost_line_of_the_users() -> None:
    found: list[Site | None] = []
    json.dumps({1: object()}, default=lambda value: found.append(user_site(sys._getframe(1))) or "x")  # type: ignore[func-returns-value]
    assert found[0] is not None and (found[0].file, found[0].function) == (__file__, _name(found))
    here = user_site(sys._getframe())
    assert here is not None and here.function == "test_the_site_is_the_innermost_line_of_the_users"
    assert here.place.endswith(f"test_frames.py:{here.line}")


def _name(found: list[Any]) -> str:
    return str(found[0].function)


def test_a_place_is_named_from_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert place(str(tmp_path / "app" / "users.py"), 12) == str(Path("app") / "users.py") + ":12"
    assert place("/elsewhere/a.py", 3) == "/elsewhere/a.py:3" and place("/elsewhere/a.py") == "/elsewhere/a.py"
    assert place(str(LABKIT / "blog" / "models.py"), 3).startswith("labkit")
    code = _name.__code__
    assert place(code).endswith(f"test_frames.py:{code.co_firstlineno}")
    frame = sys._getframe()
    assert place(frame).endswith(f":{frame.f_lineno - 1}") or place(frame).endswith(f":{frame.f_lineno}")


def test_a_cell_has_its_number_in_both_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"/tmp/ipykernel_1/99.py": ("Cell", "In[5]")}
    shell = SimpleNamespace(compile=SimpleNamespace(format_code_name=names.get))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert place("/tmp/ipykernel_1/99.py", 6) == "celda [5], línea 6"
    assert place("/tmp/ipykernel_1/99.py") == "celda [5]"
    assert _frames.cell_number("/tmp/other.py") is None
    settings.set_language("en")
    assert place("/tmp/ipykernel_1/99.py", 6) == "cell [5], line 6"


def test_ipython_itself_gives_the_number() -> None:
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    try:
        filename = shell.compile.cache("1 / 0", 7)
        assert place(filename, 1) == "celda [7], línea 1"
    finally:
        InteractiveShell.clear_instance()


def nested(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise LookupError("no data") from error


def test_an_error_is_told_in_the_users_frames_alone() -> None:
    with pytest.raises(LookupError) as caught:
        nested("{")
    error = caught.value
    text = describe(error)
    assert "json/decoder.py" not in text and "JSONDecodeError" in text  # the cause is told, its library is not
    assert text.index("JSONDecodeError") < text.index("LookupError: no data")
    assert 'raise LookupError("no data") from error' in text and "en nested" in text
    trace = user_traceback(error)
    assert trace is not None and trace.tb_frame.f_code.co_filename == __file__


def test_a_group_of_one_is_opened_and_foreign_errors_have_no_frames() -> None:
    assert describe(BaseExceptionGroup("group", [ValueError("inside")])) == "ValueError: inside"
    assert user_traceback(ValueError("never raised")) is None
