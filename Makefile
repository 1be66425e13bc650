# make lab · make test · make check · make bench · make notebooks · make clean
# PYTHON=python3.13 picks another interpreter; LANG_=en opens the English edition.
PYTHON ?= python3
LANG_ ?= es
PORT ?= 8888
BIN = .venv/bin
STAMP = .venv/.ready-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

.PHONY: lab test check format bench notebooks lock clean .venv
.DEFAULT_GOAL := lab

lab: .venv
	@$(BIN)/python -m labkit lab --language $(LANG_) --port $(PORT)

test: .venv
	@$(BIN)/python -m pytest $(ARGS)

check: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m labkit notebooks --check

format: .venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv
	@$(BIN)/python -m benchmarks $(ARGS)

notebooks: .venv
	@$(BIN)/python -m labkit notebooks

# Maintainers only: needs uv. No URLs, no hashes, so that pip, conda and Binder install from the one file.
lock:
	uv pip compile --universal --python-version 3.11 --all-extras --no-annotate --no-header --no-emit-index-url \
	  --quiet --upgrade pyproject.toml -o requirements.lock

.venv: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "labkit needs Python 3.11 or newer and %s is %d.%d: install one, then run: make $(MAKECMDGOALS) PYTHON=python3.12" % (sys.executable, v[0], v[1]))' \
	  || { echo "No usable Python behind '$(PYTHON)'. Try: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11-or-newer" >&2; exit 1; }
	@rm -rf .venv
	@echo "[1/3] Creating the environment in .venv (about a minute; only the first time)"
	@$(PYTHON) -m venv .venv
	@echo "[2/3] Installing $$(grep -c == requirements.lock) packages from requirements.lock"
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -r requirements.lock | grep --line-buffered -E '^(Collecting|Downloading|Installing|Successfully|ERROR)' | awk '/^Collecting/ {printf "\r      %4d  %-50.50s", ++n, $$2; fflush()} /^Installing/ {print "\n      unpacking ..."} /^ERROR/ {print}'
	@echo "[3/3] Installing labkit itself"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
