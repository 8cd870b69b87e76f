# make demo | test | test-all | check | bench | bench-quick | install. Everything lives in .venv; nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin
PIP := PIP_CONSTRAINT="$(CURDIR)/constraints.txt" $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: install demo test test-all check bench bench-quick clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ddpm needs Python 3.11 or newer; name one with PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "no venv: on Debian or Ubuntu, apt-get install python3-venv"; exit 1; }
	@echo "installing into .venv (a few minutes the first time)"
	@$(PIP) --editable .
	@touch $@

.venv/installed-test: .venv/installed
	@$(PIP) --editable '.[test,dev]'
	@touch $@

demo: .venv/installed
	$(BIN)/python -m ddpm.demo

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto

test-all: .venv/installed-test
	$(BIN)/python -m pytest -n auto -m ''

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed-test
	$(BIN)/python -m benchmarks

bench-quick: .venv/installed-test
	$(BIN)/python -m benchmarks --quick

clean:
	rm -rf .venv output .pytest_cache .mypy_cache .ruff_cache
