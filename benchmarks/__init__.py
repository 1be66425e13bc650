"""Our tools against floors and peers, each in the same run: ``make bench``, or ``python -m benchmarks --quick``."""
