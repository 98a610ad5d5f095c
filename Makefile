# Every command sets up its own virtual environment first; `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= 2.13.0
ARGS ?=

BIN := $(VENV)/bin
# A VENV that is no virtual environment must not get our packages into somebody's Python.
export PIP_REQUIRE_VIRTUALENV := 1
CPU_INDEX := https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help demo test lint format clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  Settings: PYTHON=$(PYTHON)  VENV=$(VENV)  ARGS="arguments of the command"'

demo: $(VENV)/.demo ## Plan Push-T from pixels with the bundled weights: table, videos and report
	$(BIN)/python -m cjepa_agent.evaluate out=results/demo $(ARGS)

# A process per core, which share no cores within PyTorch; fixtures are made once per file.
test: $(VENV)/.test ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile $(ARGS)

lint: $(VENV)/.test ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment and all caches
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# PyTorch comes first and by itself: without an NVIDIA GPU the CPU build saves several GB. Where the CPU index
# cannot be reached, the default index serves.
$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, for example: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	@echo 'Setting up $(VENV): PyTorch and the other dependencies, once, some minutes ...'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import torch' 2>/dev/null \
	|| { ! nvidia-smi >/dev/null 2>&1 \
	     && $(BIN)/python -m pip install -qqq --retries 1 --timeout 20 --index-url $(CPU_INDEX) torch==$(TORCH); } \
	|| $(BIN)/python -m pip install --quiet torch==$(TORCH)
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	@$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.demo
