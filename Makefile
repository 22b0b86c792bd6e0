# `make demo` and `make test` do all of their own set-up in a fresh clone.
PYTHON ?= python3
VENV := .venv
DEMO := demo
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install demo test tests fast lint format clean results peers docs bench gpu-wheels

help:
	@echo "make demo     install, then simulate, convert, train, predict, evaluate, report (folder demo/)"
	@echo "make install  create .venv with everything in it"
	@echo "make test     install, lint, all tests (22 minutes on two cores)"
	@echo "make tests    install, all tests without lint; TESTS=\"--parts fast\" for one of cluster, fast, ray, slow"
	@echo "make fast     install, the tests that use no Ray and take no more than seconds"
	@echo "make docs     build the documentation as a site (build/site)"
	@echo "make bench    measure speed and memory, write docs/benchmarks.md and docs/scale.md (45 minutes)"
	@echo "make gpu-wheels  download what scripts/gpu_check.sh needs on a bare machine with a GPU (build/gpu-wheels)"
	@echo "make peers    run programs of others on the same data, write docs/peers.md (hours, GB; resumes)"
	@echo "make results  train and score what docs/results.md shows, and write it (hours; resumes)"

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	rm -rf $(DEMO)
	$(BIN)/tadvae simulate --out $(DEMO)/screens
	$(BIN)/tadvae convert $(DEMO)/screens/spec.yaml --out $(DEMO)/store
	$(BIN)/tadvae inspect $(DEMO)/store
	$(BIN)/tadvae train $(DEMO)/store --out $(DEMO)/run --workers 2 --set pathways.file=$(DEMO)/screens/pathways.gmt
	$(BIN)/tadvae predict $(DEMO)/run --target SIM0068+SIM0165 --context SIMLINE1 --dataset screen_a \
		--out $(DEMO)/predicted.h5ad
	$(BIN)/tadvae evaluate $(DEMO)/run --json $(DEMO)/evaluation.json
	$(BIN)/tadvae report $(DEMO)/run --out $(DEMO)/report.html
	@echo "written: $(DEMO) (screens, store, run, evaluation.json, predicted.h5ad, report.html)"

# Trains what is missing (hours on two cores), stores every fold in benchmarks/results, writes docs/results.md.
# One study, fewer seeds: make results RESULTS="--study carpool --seeds 1"
results: install
	$(BIN)/python benchmarks/results.py $(RESULTS)

# Installs each program into an environment of its own below build/peers, runs it, stores its scores in
# benchmarks/results/peers, writes docs/peers.md. One program: make peers PEERS="--peer decoupler"
peers: install
	$(BIN)/python benchmarks/make_peers.py $(PEERS)

# Every speed benchmark, stored in benchmarks/results/bench. On an idle machine, and 10 GB of disk for a while.
# Where Python 3.12 is not on the PATH: make bench BENCH="--python312 /path/to/python3.12"
bench: install
	$(BIN)/python benchmarks/bench.py $(BENCH)

# What is missing where torch, numpy, pandas, pyarrow, h5py, safetensors and numba are (13 MB), for Python 3.12.
GPU_WHEELS := pydantic pydantic-core annotated-types typing-inspection anndata array-api-compat legacy-api-wrap \
	natsort scverse-misc session-info2 zarr numcodecs donfig google-crc32c pooch platformdirs obonet
gpu-wheels:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
		--platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 --platform any \
		--constraint constraints.txt --dest build/gpu-wheels $(GPU_WHEELS)

test: lint tests

# In four parts, two at a time: see scripts/run_tests.py. One part: make tests TESTS="--parts ray"
tests: install
	$(BIN)/python scripts/run_tests.py $(TESTS)

fast: install
	$(BIN)/python scripts/run_tests.py --parts fast

docs: install
	$(BIN)/mkdocs build --strict

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(DEMO) $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
