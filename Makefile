# Recipes are one verb each; CI calls the same ones. Nothing is needed but Python 3.11 to 3.13.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test soak lint bench clean

demo: $(VENV)/.demo
	@$(BIN)/genward demo $(ARGS)

test: $(VENV)/.dev  # two files at a time, each on a core of its own
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak" -n 2 --dist loadfile $(ARGS)

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m soak $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) .genward-demo build dist .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@echo "Making an environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

# Two installs of one environment: what the demo needs, and everything.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing genward (a few minutes the first time) ..."
	@$(PIP) -e '.[train,serve]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing genward with its development tools ..."
	@$(PIP) -e '.[train,serve,postgres,dev]'
	@touch $@ $(VENV)/.demo
