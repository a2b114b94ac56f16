# Every habit is a target; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
# Each worker and each command it starts computes with one thread.
PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup train test test-quick lint format tensorboard kill-resume two-hosts try-settings try-damages bench bench-gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## create .venv and install the project with what development needs

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

train: setup  ## train on the embedded digits; under two minutes on two cores
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

bench: setup  ## measure speed against the peers: PHOTOS=<folder of classes> CIFAR=<train/, val/>
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python scripts/bench.py $(if $(PHOTOS),--photos $(PHOTOS)) $(if $(CIFAR),--cifar $(CIFAR))

bench-gpu: setup  ## what holds on a GPU, part by part, into docs/gpu.json: CIFAR=<train/, val/>
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python scripts/bench_gpu.py $(if $(CIFAR),--cifar $(CIFAR))

clean:  ## remove .venv and caches; outputs/ stays
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
