# One virtual environment, reused; every target sets it up when it is not there.
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.edgeprune-installed
EXTRAS := compress,cpu,rtx,report,demo,video,test

.PHONY: install demo test test-fast lint format clean

install: $(STAMP)

$(STAMP): pyproject.toml Makefile
	test -x $(PY) || python3 -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

demo: $(STAMP)
	$(VENV)/bin/edgeprune demo $(DEMO_ARGS)

# Two processes of one thread each: small networks gain nothing from more threads.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

test: $(STAMP)
	$(PYTEST) $(TEST_ARGS)

test-fast: $(STAMP)
	$(PYTEST) -m 'not slow and not gpu' $(TEST_ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
