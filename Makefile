# Every habit is a target; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Each worker and each command it starts computes with one thread.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup train test test-quick lint format tensorboard kill-resume two-hosts try-settings try-damages try-tables bench bench-gpu test-floors release clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## create .venv and install the project with what development needs

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

train: setup  ## train on the embedded digits; about two minutes on two cores
	$(BIN)/vit-train

test: setup  ## the whole test suite: no GPU, no network
	$(BIN)/python -m pytest $(PARALLEL)

test-quick: setup  ## most of it, in a minute: without what trains, exports or starts processes
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow'

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## let ruff format the code and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tensorboard: setup  ## open TensorBoard on outputs/
	$(BIN)/tensorboard --logdir outputs

kill-resume: setup  ## kill a run with SIGKILL 20 times, resume it, compare to the bit
	OMP_NUM_THREADS=1 $(BIN)/python scripts/kill_resume.py --kills 20

two-hosts: setup  ## kill a process of one of two hosts (network namespaces), compare; needs root
	PYTHONPATH=scripts $(BIN)/python scripts/two_hosts.py

try-settings: setup  ## 1,000 random settings, 100 of them trained: each is answered
	OMP_NUM_THREADS=1 $(BIN)/python scripts/try_settings.py

try-damages: setup  ## 300 damages to what a run has written: each is answered
	OMP_NUM_THREADS=1 $(BIN)/python scripts/try_damages.py

try-tables: setup  ## 10,000 tables of labels, 200 of them broken, and one of a million rows
	$(BIN)/python scripts/try_tables.py --count 10000 --broken 200 --rows 1000000

bench: setup  ## measure speed against the peers: PHOTOS=<folder of classes> CIFAR=<train/, val/>
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python scripts/bench.py $(if $(PHOTOS),--photos $(PHOTOS)) $(if $(CIFAR),--cifar $(CIFAR))

bench-gpu: setup  ## what holds on a GPU, part by part, into docs/gpu.json: CIFAR=<train/, val/>
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python scripts/bench_gpu.py $(if $(CIFAR),--cifar $(CIFAR))

# Environments of uv: it can resolve the lowest versions.
UV := $(BIN)/uv
FLOORS := .floors/bin/python
test-floors: setup  ## every command with the lowest versions of all direct dependencies, extras too
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) venv --quiet --clear .floors
	$(UV) pip install --quiet --python $(FLOORS) --resolution lowest-direct '.[onnx,parquet,sweep,slurm]'
	OMP_NUM_THREADS=1 $(FLOORS) scripts/use_installed.py --extras onnx parquet sweep

release: setup  ## wheel and sdist into dist/, each tried in a clean environment, and the tag
	@test -z "$$(git status --porcelain)" || { echo "commit first: a release is what is committed"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	rm -rf dist && $(BIN)/python -m build --outdir dist
	for built in dist/*; do $(UV) venv --quiet --clear .floors && \
	  $(UV) pip install --quiet --python $(FLOORS) "$$built" && \
	  OMP_NUM_THREADS=1 $(FLOORS) scripts/use_installed.py || exit 1; done
	git tag --annotate "v$$($(FLOORS) -c 'from importlib.metadata import version as v; print(v("vit-train"))')" \
	  --message "What changed stands in CHANGELOG.md"

clean:  ## remove .venv and caches; outputs/ stays
	rm -rf .venv .floors build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
