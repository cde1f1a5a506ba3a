# Two commands matter: `make demo` and `make test`. Both install what they need on first use.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
OFFLINE := HF_HUB_OFFLINE=1
REQUIREMENTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

help:
	@echo "make demo    align the bundled model with GRPO-Guard and compare before and after"
	@echo "make test    ruff, pyright and all tests (PYTEST_ARGS='-m \"not slow\"' for a subset)"
	@echo "make lint    ruff and pyright only"
	@echo "make clean   remove caches and build leftovers; keeps runs/ and $(VENV)"
	@echo "Variables: PYTHON=$(PYTHON) VENV=$(VENV) PYTEST_ARGS=$(PYTEST_ARGS) WORKERS=$(WORKERS)"

demo: $(VENV)/.installed
	@$(OFFLINE) $(BIN)/studio demo

test: lint
	@$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

# The interpreter is order-only: it is as old as the system's Python, whatever happened to the environment.
$(VENV)/.installed: $(REQUIREMENTS) | $(BIN)/python
	@echo "installing alignment-studio into $(VENV) (about 3 minutes, most of it the download of torch) ..."
	@$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.dev: $(REQUIREMENTS) | $(BIN)/python
	@echo "installing alignment-studio and its development tools into $(VENV) (about 3 minutes) ..."
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $(VENV)/.installed $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)' || \
		{ echo "$(PYTHON) is missing or older than Python 3.11. Use another: make PYTHON=python3.12 ..." >&2; exit 3; }
	@echo "making the virtual environment $(VENV) ..."
	@$(PYTHON) -m venv $(VENV) || { rm -f $(BIN)/python; exit 3; }

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find studio flows rewards pruning ui tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
