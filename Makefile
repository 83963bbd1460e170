# Two commands do everything on a fresh machine with Python 3.11 or newer, make and pip:
#   make reproduce   the paper's experiment, figures and report (40 epochs, a few minutes)
#   make test        every test but the slowest
# Each sets up its own .venv and can be repeated.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Packages whose models the tests want, but whose bounds exclude today's torch.
NO_DEPS := tests/requirements-no-deps.txt
# The sources of the page that convfc explore opens.
WEB := src/convfc/explorer/web
# How long `make fuzz` draws layers, and the seed to begin with (by default a new one).
MINUTES ?= 30
SEED ?=
# Keep what Python has compiled, whatever the machine is set to: pytest compiles every assertion.
export PYTHONDONTWRITEBYTECODE :=
.DEFAULT_GOAL := help
.PHONY: help reproduce paper test test-fast test-all wheel lowest fuzz check docs bench explorer clean

help:
	@echo "make reproduce  run the paper's experiment and write runs/default/report.html"
	@echo "make paper      the same with the paper's 400 epochs, into runs/paper"
	@echo "make test       run the tests but the slowest (installs PyTorch and TensorFlow as judges)"
	@echo "make test-fast  run one test in twelve of every file in tests/, while you work"
	@echo "make test-all   run every test, the slowest too"
	@echo "make wheel      build the wheel and the sdist, and use them from empty environments"
	@echo "make lowest     run every example with the lowest versions that pyproject.toml names"
	@echo "make fuzz       compare random layers with PyTorch's for MINUTES=30; SEED= repeats a run"
	@echo "make check      lint, format and type checks"
	@echo "make docs       build the documentation as a site, into site/"
	@echo "make bench      benchmarks against named peers"
	@echo "make explorer   build the explorer's page anew, after a change of its sources (needs Node.js)"
	@echo "make clean      remove .venv and caches (runs/ stays)"

reproduce: $(VENV)/.installed-paper
	@echo "== convfc reproduce: interrupted or finished before, it continues or redraws the report"
	$(BIN)/convfc reproduce --resume

paper: $(VENV)/.installed-paper
	@echo "== convfc reproduce --paper: 400 epochs, about an hour on two cores"
	$(BIN)/convfc reproduce --paper --resume

test: $(VENV)/.installed-test
	@echo "== pytest"
	$(BIN)/python -m pytest -n auto --dist worksteal

test-fast: $(VENV)/.installed-test
	@echo "== pytest, one test in twelve of every file"
	$(BIN)/python -m pytest -n auto --dist worksteal --one-in 12 tests

test-all: $(VENV)/.installed-test
	@echo "== pytest, with the slowest tests, and JAX's programs as users have them"
	XLA_FLAGS= $(BIN)/python -m pytest -n auto --dist worksteal -m "slow or not slow"

wheel: $(VENV)/.installed-test
	@echo "== the wheel, installed alone and extra by extra"
	$(BIN)/python -m pytest -m slow -k "not lowest" tests/test_release.py

lowest: $(VENV)/.installed-test
	@echo "== every example, with the lowest versions"
	$(BIN)/python -m pytest -m slow -k lowest tests/test_release.py

fuzz: $(VENV)/.installed-test
	@echo "== random layers in all forms, $(MINUTES) minutes"
	PYTHONPATH=tests $(BIN)/python tests/frameworks/torch/drawn_layers.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

check: $(VENV)/.installed-dev
	@echo "== ruff, mypy"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# MkDocs' theme would else print a note on its own future before every build.
docs: $(VENV)/.installed-docs
	@echo "== mkdocs: site/index.html"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(VENV)/.installed-bench
	@echo "== benchmarks"
	$(BIN)/python benchmarks/run.py

explorer:
	@command -v npm >/dev/null || { echo "The explorer's page is built with Node.js, and there is no npm here. Remedy: apt-get install nodejs npm; the page as it was built last is in src/convfc/explorer/static."; exit 1; }
	@echo "== building the explorer's page"
	npm ci --prefix $(WEB) --silent
	npm run build --prefix $(WEB) --silent

$(VENV)/bin/python:
	@echo "== creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "convfc needs Python 3.11 or newer; got " + sys.version.split()[0] + ". Remedy: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: $(VENV)/bin/python pyproject.toml constraints.txt $(NO_DEPS)
	@echo "== installing convfc with what '$*' needs (once)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	$(if $(filter test dev,$*),$(BIN)/python -m pip install --quiet --no-deps --requirement $(NO_DEPS))
	@touch $@

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
