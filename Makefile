PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: install test test-page test-compose chaos check lint demo lock clean

install: $(STAMP)

$(STAMP): requirements-dev.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -r requirements-dev.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	touch $@

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Most of the tests wait for processes and leases, so three at a time keep two cores busy,
# each with one thread: more would spin while they wait for a core.
TEST_PROCESSES ?= 3
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist worksteal

# Looks at the dashboard's page; needs Debian's packages chromium and chromium-driver.
test-page: $(STAMP)
	$(BIN)/python -m pytest tests/page

# Builds the image and runs the service in containers; needs Docker with Compose v2.
test-compose: $(STAMP)
	tests/compose/with-docker.sh $(BIN)/python -m pytest tests/compose

# A storm over one study, beside plain Optuna in the same storm; the report is build/chaos-SEED.md.
# Filling a volume needs the right to mount one; elsewhere that event is left out, and the report says so.
MINUTES ?= 30
SEED ?= 1
CHAOS ?=
chaos: $(STAMP)
	$(BIN)/python -m benchmarks.chaos --minutes $(MINUTES) --seed $(SEED) $(CHAOS)

check: lint test

demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/demo.sh

# Renews both lock files from pyproject.toml; pip resolves, so that torch comes from where pip finds it.
lock: $(STAMP)
	$(BIN)/pip-compile --quiet --upgrade --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header \
		--output-file requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --upgrade --strip-extras --allow-unsafe --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header \
		--extra dev --extra onnx --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml

clean:
	rm -rf $(VENV) .melsearch
