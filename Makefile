# Every target works as the first command on a machine with only Python and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PEERS := $(VENV)/.peers-installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-all test-no-numba lint format notebooks pictures bench clean

help:
	@echo "make demo            learn the published room, with a table and pictures"
	@echo "make test            fast tests"
	@echo "make test-all        all tests, slow ones too"
	@echo "make test-no-numba   the tests of the exact core as on a machine without numba"
	@echo "make lint            ruff and mypy"
	@echo "make format          let ruff rewrite"
	@echo "make notebooks       execute the notebooks in full and store their outputs"
	@echo "make pictures        make the pictures of the README again"
	@echo "make bench           speed and memory, with the peers that are installed"
	@echo "make clean           remove the environment and build outputs"

# An environment without the stamp is kept: pip only adds what is missing.
$(READY): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (the first time this downloads PyTorch) ..."
	@$(PIP) -e ".[dev]"
	@touch $@

$(PEERS): $(READY)
	@$(PIP) -e ".[bench]"
	@touch $@

demo: $(READY)
	$(BIN)/chmm demo

test: $(READY)
	$(BIN)/python -m pytest -q -m "not slow"

test-all: $(READY)
	$(BIN)/python -m pytest -q

# What learns from long walks would take hours.
CORE := tests/kernels tests/models $(wildcard tests/test_distribution*.py) $(addprefix tests/test_, \
	bad_input.py golden.py messages.py parameters.py peers.py tables.py)

test-no-numba: $(READY)
	CHMM_PYRO_KERNEL=torch PYTHONPATH=tests $(BIN)/python -m pytest -p without_numba -q \
		-m "not slow" $(CORE)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

notebooks: $(READY)
	$(BIN)/python notebooks/execute.py

pictures: $(READY)
	$(BIN)/python examples/pictures.py

bench: $(PEERS)
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/memory.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
