# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin

# One thread per process: small models on a few cores are faster so, and the demo runs two processes side by side.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test slow lint format site wheel clean help

help:            ## what there is
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: $(VENV)/.demo  ## train every method on the embedded model, evaluate, write leaderboards/arithmetic-quick/
	$(BIN)/python -m trl_opd board run leaderboards/arithmetic-quick.yaml

test: $(VENV)/.dev  ## the default test suite (CPU, a few minutes)
	$(BIN)/python -m pytest -n 2

slow: $(VENV)/.dev  ## tests that take minutes or download a real model
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev  ## ruff and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

site: $(VENV)/.dev  ## the documentation as a site, build/docs/site/; stops at a link that leads nowhere
	$(BIN)/python docs/build.py

wheel: $(VENV)/.dev  ## build the distributions into dist/, and try the wheel away from the repository
	$(BIN)/python -m build
	$(BIN)/python -m pytest -m slow tests/test_packaging.py

clean:           ## remove what was built and run (results in leaderboards/ stay, their runs/ go)
	rm -rf build dist .pytest_cache .ruff_cache leaderboards/*/runs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[boards]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo
