# Two commands for a fresh machine: `make test` here, `make demo` once the miniature stands.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: test slow lint wheel bench clean
test: $(READY)
	$(BIN)/python -m pytest -n 2 -m "not slow"

slow: $(READY)
	$(BIN)/python -m pytest -n 2 -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(READY)
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf dist build $(READY)
