# Two commands for a fresh machine: `make test`, and `make demo`, the paper in miniature.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
# A file stays with one worker, which then sets it up once. A worker that crashes ends the run: pytest-xdist 3.8 waits
# forever for the files of one that it replaced.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0
READY := $(VENV)/.ready

.PHONY: test demo smoke slow long lint docs docs-check wheel dist clean
# XLA's costly passes are left out here and in `make slow`: most of the time is compilation. The miniature's tests, the
# demo and `make long` run with them.
test: $(READY)
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTEST) -m "not slow and not long"

demo: $(READY)
	$(BIN)/python -m rlhfv_jax.train --config=demo.py --workdir=runs/demo $(ARGS)

smoke: $(READY)
	$(BIN)/python -m rlhfv_jax.train --config=demo.py:smoke --workdir=runs/smoke $(ARGS)

slow: $(READY)
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 $(PYTEST) -m "slow and not long"

long: $(READY)
	$(PYTEST) -m long

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in site/; strict, and nothing is fetched.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

# Every command of the documentation that can run on a small machine, run in the order of its page.
docs-check: $(READY)
	$(PYTEST) -m "not slow or slow" tests/test_docs.py tests/test_docs_site.py tests/test_docs_run.py

wheel: $(READY)
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

# The wheel and the source archive.
dist: wheel
	$(BIN)/hatchling build -t sdist -d dist

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf dist build site $(READY)
