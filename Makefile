# make lab        the workbook in JupyterLab (make lab LANG_=en: the English edition; PORT=9000: another port)
# make test       every test; ARGS="-k name" for some
# make check      format, lint, types, floors, notebooks against their source
# make bench      floors and peers; ARGS="request recorder" for some
# make notebooks  every edition from notebooks/source
# make clean      remove the environment and caches, never work/
# PYTHON=python3.13 chooses another interpreter for .venv.
SHELL = bash
PYTHON ?= python3
LANG_ ?= es
PORT ?= 8888
RUN = .venv/bin/python -m
# The interpreter that nobody chose may differ from that of an environment that is ready.
ANY = $(if $(filter file,$(origin PYTHON)),--any)

.PHONY: lab test check format bench notebooks lock clean .venv
.DEFAULT_GOAL := lab

lab: .venv
	@$(RUN) labkit lab --language $(LANG_) --port $(PORT) $(ARGS)

test: .venv
	@$(RUN) pytest $(ARGS)

check: .venv
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	.venv/bin/lint-imports
	$(RUN) labkit notebooks --check

format: .venv
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

bench: .venv .venv/peers/.ready
	@$(RUN) benchmarks $(ARGS)

# Only measured beside, so in a folder of their own; where they cannot be had, the tables say that they are missing.
.venv/peers/.ready: benchmarks/peers.txt | .venv
	-@$(RUN) pip install -qq --disable-pip-version-check --no-deps --upgrade --target .venv/peers -r $< && touch $@

notebooks: .venv
	@$(RUN) labkit notebooks

.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 6))' 2>/dev/null || { \
	  echo "$(PYTHON): no hay Python 3.11 o posterior / no Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) install.py $(ANY) --language $(LANG_) --goal "$(firstword $(MAKECMDGOALS))"

# For maintainers; needs uv. One universal lock without addresses or hashes, for pip, conda and Binder alike.
lock:
	uv pip compile --universal --python-version 3.11 --all-extras --no-annotate --no-header --no-emit-index-url \
	  --quiet --upgrade pyproject.toml -o requirements.lock

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
