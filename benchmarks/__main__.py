"""``python -m benchmarks [--quick] [name ...]``: run each ``bench_*.py`` in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def main(arguments: list[str]) -> int:
    """Run the benchmarks named (all by default); 1 if one of them broke, whatever it measured."""
    known = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    options = [each for each in arguments if each.startswith("-")]
    names = [each.removeprefix("bench_") for each in arguments if not each.startswith("-")] or known
    if (unknown := set(names) - set(known)) or set(options) - {"--quick"}:
        print(f"unknown: {' '.join(sorted(unknown) or options)}; choose of: {' '.join(known)}; option: --quick")
        return 2
    broken = []
    for name in names:
        start = time.perf_counter()
        print(f"## {name}\n", flush=True)
        # A process each: no listener, profiler or warm cache of one is felt by the next.
        if subprocess.run([sys.executable, "-m", f"benchmarks.bench_{name}", *options], cwd=HERE.parent).returncode:
            broken.append(name)
        print(f"({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)
    if broken:
        print(f"broken: {' '.join(broken)}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
