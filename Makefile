# make demo | test | test-all | fuzz | check | bench | bench-quick | docs | docs-serve | figures | notebook | install. Everything lives in .venv; nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin
PIP := PIP_CONSTRAINT="$(CURDIR)/constraints.txt" $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: install demo test test-all fuzz check bench bench-quick docs docs-serve references figures notebook clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ddpm needs Python 3.11 or newer; name one with PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "no venv: on Debian or Ubuntu, apt-get install python3-venv"; exit 1; }
	@echo "installing into .venv (a few minutes the first time)"
	@$(PIP) --editable .
	@touch $@

.venv/installed-test: .venv/installed
	@$(PIP) --editable '.[test,dev,docs]'
	@touch $@

demo: .venv/installed
	$(BIN)/python -m ddpm.demo

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto

test-all: .venv/installed-test
	$(BIN)/python -m pytest -n auto -m ''

FUZZ ?= 20000
fuzz: .venv/installed-test
	DDPM_FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/fuzz -q

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed-test
	$(BIN)/python -m benchmarks

bench-quick: .venv/installed-test
	$(BIN)/python -m benchmarks --quick

docs: .venv/installed-test references
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

docs-serve: .venv/installed-test references
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

# The pages that are generated from the code, the figures of the lesson, the notebook's outputs: all are committed.
references: .venv/installed-test
	$(BIN)/python -m docs.tools.reference

# Some figures are better of a larger model: make figures CHECKPOINT=output/image/mnist/ddpm_cpu.yaml/diffusion-5000.pt
figures: .venv/installed-test
	CHECKPOINT="$(CHECKPOINT)" $(BIN)/python -m docs.figures $(FIGURES)

notebook: .venv/installed-test
	$(BIN)/python -m docs.tools.notebook

clean:
	rm -rf .venv output .pytest_cache .mypy_cache .ruff_cache .hypothesis
