"""What each tool of the Lab costs the request it looks at."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks._measure import QUICK, Case, Table, compare, publish, repeat
from labkit import Lab
from labkit.blog import create_app


def main() -> None:
    """An endpoint of many small statements, and one of two."""
    introduction = (
        "Time of the whole call, by the tool that looks at it; some tools make the request more than once. "
        "No simulated latency, no sleep."
    )
    paths = {"fast-endpoint, 2 statements": "/performance/fast-endpoint"}
    if not QUICK:
        paths["slow-endpoint, 1,051 statements"] = "/performance/slow-endpoint?sleep_ms=0"
    with (
        tempfile.TemporaryDirectory(prefix="labkit-bench-") as folder,
        Lab(create_app(data_folder=Path(folder)), redis=False, latency=0) as lab,
    ):
        tables = [_table(lab, title, path) for title, path in paths.items()]
    publish("profilers", introduction, tables)


def _table(lab: Lab, title: str, path: str) -> Table:
    cases = [
        Case("lab.get", repeat(lambda: lab.get(path))),
        Case("lab.queries, every statement and its line", repeat(lambda: lab.queries(path))),
        Case("lab.profile, cProfile's table and pyinstrument", repeat(lambda: lab.profile(path))),
        Case("lab.lines of the endpoint", repeat(lambda: lab.lines(path))),
        Case("lab.memory of the endpoint", repeat(lambda: lab.memory(path))),
    ]
    return compare(title, "the request by lab.get", cases, seconds=20, fewest=3, batch=0.02)


if __name__ == "__main__":
    main()
