# Needs Python 3.11 and make, nothing else: no Java, no Docker, no git. `make` alone says what there is to do.

.DEFAULT_GOAL := help
BIN := .venv/bin
# Two files of tests at a time, each file in one process; ARGS="-n 0" runs one after the other.
SIDE_BY_SIDE := -n 2 --dist loadfile
# PyTorch's threads, one in each: more than there are cores wait for each other in spinning.
ONE_THREAD := OMP_NUM_THREADS=1
STARTED := $(shell date +%s)
# The first of these that is a Python 3.11; name another with `make PYTHON=/path/to/python3.11 ...`.
PYTHON ?= $(shell for python in python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$python && break; done)

.PHONY: help setup demo prometheus browser test test-long soak check bench format docs lock clean

help: ## Say what there is to do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.ready ## Build .venv from the pinned requirements, if they changed

.venv/.ready: constraints.txt infra/encoders.lock infra/install.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "Freshet needs Python 3.11 and found none. Install it (apt install python3.11 python3.11-venv," \
		"or pyenv install 3.11), or name one: make PYTHON=/path/to/python3.11 setup" >&2; exit 2; }
	@$(PYTHON) infra/install.py
	@touch $@

demo: setup ## The whole loop on real data, then a report (more flags: ARGS="--help")
	@$(BIN)/freshet demo --started $(STARTED) $(ARGS)

prometheus: setup ## Fetch the real Prometheus for the tests of its rules, unless it is there
	@$(BIN)/python -m tests.prometheus_binaries || echo "make: the tests that need Prometheus will fail" >&2

browser: setup ## Install the Chromium that drives the page in the tests, unless there is one
	@$(BIN)/python -m tests.browser || echo "make: the tests of the page will fail" >&2

test: setup prometheus browser ## The tests; the exhaustive ones as a seeded sample
	@$(ONE_THREAD) $(BIN)/pytest -m "not long" $(SIDE_BY_SIDE) $(ARGS)

test-long: setup prometheus browser ## All tests, exhaustive ones in full
	@$(ONE_THREAD) $(BIN)/pytest -m "long or not long" $(SIDE_BY_SIDE) $(ARGS)

soak: setup ## 30 minutes of load, every process killed once, then the checks (more flags: ARGS="--help")
	@$(ONE_THREAD) $(BIN)/python -m tests.soak $(ARGS)

check: setup ## Format, lint, types, direction of imports, sizes, names, documents
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/pytest --quiet tests/unit/test_layout.py tests/unit/test_documents.py tests/unit/test_compose.py

bench: setup ## Run tests/bench/NAME.py and write var/bench/NAME.json: make bench NAME=broker
	@$(BIN)/python -m tests.bench.run $(NAME)

format: setup ## Format and fix what can be fixed
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

docs: setup ## Write what is generated: the tree and the settings in README.md, Grafana's dashboard
	@$(BIN)/python -m infra.dashboard
	@$(BIN)/python -m tests.readme_blocks

lock: setup ## Pin anew what pyproject.toml asks for; kept pins stay, unless ARGS=--upgrade
	@$(BIN)/python -m uv pip compile --quiet --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--python $(BIN)/python --group dev --all-extras $(ARGS) pyproject.toml --output-file constraints.txt

clean: ## Remove what can be built again; var/ (data, reports) stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	@find . -name __pycache__ -prune -exec rm -rf {} +
