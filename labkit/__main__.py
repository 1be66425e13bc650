"""The command line: ``python -m labkit lab | notebooks | reset``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from labkit import settings
from labkit._text import Catalogue
from labkit.errors import LabkitError

say = Catalogue("labkit.course")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 1 after a sentence on the standard error."""
    parser = _parser()
    command, rest = parser.parse_known_args(argv)
    command.rest = rest
    if rest and command.run is not _notebooks:
        parser.error(f"unknown: {' '.join(rest)}")
    try:
        status: int = command.run(command)
    except LabkitError as error:
        print(error, file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m labkit", description="The workbook.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    lab = commands.add_parser("lab", help="copy the notebooks to work/ and open JupyterLab")
    _language(lab)
    lab.add_argument("--port", type=int, default=8888, help="the port to try first (default: %(default)s)")
    lab.add_argument("--no-browser", dest="browser", action="store_false", default=None, help="print the address only")
    lab.set_defaults(run=_lab)

    builder = "build every edition from notebooks/source (--check: only say whether they are up to date)"
    notebooks = commands.add_parser("notebooks", help=builder, add_help=False)
    notebooks.set_defaults(run=_notebooks)

    reset = commands.add_parser("reset", help="bring one lesson back; yours is kept in work/backup")
    reset.add_argument("name", help="the lesson: 01_profiling or 01")
    _language(reset)
    reset.set_defaults(run=_reset)
    return parser


def _language(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--language", choices=settings.LANGUAGES, default=settings.language(), help="default: %(default)s"
    )


def _lab(command: argparse.Namespace) -> int:
    from labkit.course import launcher

    launcher.run(command.language, port=command.port, browser=command.browser, tell=_tell)
    return 0


def _notebooks(command: argparse.Namespace) -> int:
    from labkit.course import editions

    return editions.main(command.rest)


def _reset(command: argparse.Namespace) -> int:
    from labkit.course import workspace

    settings.set_language(command.language)
    backup = workspace.reset(command.name, command.language)
    key = "workspace.reset" if backup is None else "workspace.backup"
    _tell(say(key, name=command.name, backup=backup))
    return 0


def _tell(sentence: str) -> None:
    print(sentence, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
