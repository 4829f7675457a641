# The verbs of the project. Each does all the set-up that it needs; nothing but Python >= 3.11, make
# and gcc is asked for. `make serve` and `make test` are where a newcomer starts.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup serve test check bench ecosystem

setup: $(VENV)/.ready

# torch goes first and pinned: an unpinned one pulls gigabytes of CUDA. The kernels are compiled where
# there is a compiler, and left out where there is none.
$(VENV)/.ready: pyproject.toml $(wildcard cluster/kernels/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; point PYTHON at one: make PYTHON=python3.11"; exit 1; }
	@echo "Setting up $(VENV) (minutes the first time, nothing afterwards) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade pip
	@$(BIN)/python -m pip install -qq torch==2.13.0
	@$(BIN)/python -m pip install -qq --editable '.[dev]'
	@$(BIN)/python -m cluster.kernels.build
	@touch $@

serve: setup
	@$(BIN)/deeprequest serve --config configs/quickstart.yaml

test: setup
	@$(BIN)/python -m pytest

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest tests/test_architecture.py

bench: setup
	@$(BIN)/python -m pytest tests/bench --override-ini='python_files=bench_*.py' --capture=no

# Real clients, each in an environment of its own, against the quick start's service; node where there is one.
ecosystem: setup
	@$(BIN)/python -m tests.ecosystem --write README.md --write docs/clients.md
