# Two commands: `make demo` shows what Poseward does, `make test` checks that it does it.
# Needed: make and Python 3.10 or later. Everything else goes into $(VENV).

PYTHON ?= python3
VENV ?= .venv
VIDEO ?=
OUT ?= demo/results
FAULTS ?= 200
HUMANS4D_PYTHON ?= python3
DEVICE ?= cuda
JOBS ?= 4

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.poseward-installed

.PHONY: help env models demo test test-node test-long test-humans4d bench-gpu lint chaos clean

help:
	@echo "make demo [VIDEO=path]  run the whole pipeline on the project's clip, or on your video"
	@echo "make test               lint, type-check and run all tests"
	@echo "make test-long          the tests that wait for minutes: a cluster's head that dies, …"
	@echo "make test-node          the tests of the Node.js client only (make test runs them too)"
	@echo "make test-humans4d      the tests of the 4D-Humans backend with HUMANS4D_PYTHON, which has torch and its packages"
	@echo "make bench-gpu          speed and memory of the 4D-Humans backend on this machine's GPU, with HUMANS4D_PYTHON"
	@echo "make lint               ruff and mypy only"
	@echo "make chaos [FAULTS=200] the long test that kills processes at random"
	@echo "make clean              remove the environment, caches and the demo's results"
	@echo "PYTHON=$(PYTHON), VENV=$(VENV) and JOBS=$(JOBS) (tests side by side) can be set as well."

env: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "error: $(PYTHON) not found; install Python 3.10 or later, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: $$("$(PYTHON)" --version 2>&1) is too old; Poseward needs Python 3.10 or later:" \
	       "make PYTHON=/path/to/python3.10"; exit 1; }
	@test -x "$(BIN)/python" && "$(BIN)/python" -m pip --version >/dev/null 2>&1 || { \
	  if "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then "$(PYTHON)" -m venv "$(VENV)"; \
	  elif command -v uv >/dev/null; then uv venv --seed --python "$(PYTHON)" "$(VENV)"; \
	  elif "$(PYTHON)" -m virtualenv --version >/dev/null 2>&1; then "$(PYTHON)" -m virtualenv "$(VENV)"; \
	  elif "$(PYTHON)" -m pip --version >/dev/null 2>&1 && "$(PYTHON)" -m venv --without-pip "$(VENV)" && \
	    "$(PYTHON)" -m pip --quiet --python "$(BIN)/python" install pip; then :; \
	  else \
	    echo "error: $(PYTHON) cannot make virtual environments (ensurepip is missing, as on Debian and Ubuntu);"; \
	    echo "       sudo apt install python3-venv     or: make PYTHON=/path/to/another/python3"; exit 1; \
	  fi; }
	@echo "installing Poseward and what it needs into $(VENV) (some 700 MB; a minute or two)"
	"$(BIN)/python" -m pip install --quiet --editable '.[dev]'
	@touch $@

# No stamp: what is in the cache is only checked, which takes no time and needs no network.
models: $(INSTALLED)
	@$(BIN)/poseward models fetch

demo/clip.mp4: daemon/cli/demo_clip.py | $(INSTALLED)
	@mkdir -p demo
	$(BIN)/poseward demo-clip $@

ifeq ($(strip $(VIDEO)),)
demo: models demo/clip.mp4
	$(BIN)/poseward run --fresh -o "$(OUT)" demo/clip.mp4
else
demo: models
	$(BIN)/poseward run --fresh -o "$(OUT)" -- "$(VIDEO)"
endif

test: lint models
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -m "not alone and not long"
	$(BIN)/python -m pytest -m "alone and not long"
	@$(MAKE) --no-print-directory test-node

# The Node.js client against real daemons. Without Node there is nothing to test, and it is said so.
test-node: $(INSTALLED)
	@if command -v npm >/dev/null && node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 18 ? 1 : 0)'; then \
	  cd clients/node && npm ci --no-progress && npm run types && \
	  POSEWARD_PYTHON="$(abspath $(BIN))/python" npm test; \
	else echo "skipped: the tests of clients/node need Node.js 18 or later, with npm"; fi

test-long: models
	$(BIN)/python -m pytest -m long

# What needs torch and the 4D-Humans packages, on synthetic weights: too much to install for every test run. The tests of
# the stages' functions run in that interpreter (which needs pytest too), those of whole pipelines in ours.
test-humans4d: $(INSTALLED)
	OMP_NUM_THREADS=1 "$(HUMANS4D_PYTHON)" -m pytest --timeout 1800 tests/backends/test_humans4d_*.py \
	  --deselect tests/backends/test_humans4d_errors.py --deselect tests/backends/test_humans4d_pipeline.py
	POSEWARD_HUMANS4D_PYTHON="$(HUMANS4D_PYTHON)" $(BIN)/python -m pytest --timeout 1800 \
	  tests/backends/test_humans4d_pipeline.py tests/backends/test_humans4d_errors.py

# Everything about the 4D-Humans backend that only a card can tell; some minutes, and 6 GB of temporary files. The last needs
# PyAV in that interpreter too, for it runs all stages there.
bench-gpu: $(if $(strip $(VIDEO)),,demo/clip.mp4)
	"$(HUMANS4D_PYTHON)" -m bench.humans4d_gpu --device "$(DEVICE)" --full
	"$(HUMANS4D_PYTHON)" -m bench.humans4d_gpu --device "$(DEVICE)" --full --profile 8gb --cap-gb 8
	"$(HUMANS4D_PYTHON)" -m bench.humans4d_tracker --device cpu
	"$(HUMANS4D_PYTHON)" -m bench.humans4d_tracker --device "$(DEVICE)"
	"$(HUMANS4D_PYTHON)" -m bench.humans4d_cpu
	"$(HUMANS4D_PYTHON)" -m bench.humans4d_loading
	"$(HUMANS4D_PYTHON)" -m bench.humans4d_card "$(if $(strip $(VIDEO)),$(VIDEO),demo/clip.mp4)" --device "$(DEVICE)"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: models $(if $(strip $(VIDEO)),,demo/clip.mp4)
	$(BIN)/python -m tests.chaos "$(if $(strip $(VIDEO)),$(VIDEO),demo/clip.mp4)" --faults $(FAULTS)

clean:
	rm -rf demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@if test -f $(INSTALLED); then echo rm -rf $(VENV); rm -rf "$(VENV)"; fi
