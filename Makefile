# make setup      the environment alone (.venv)
# make demo       prepare the embedded data, train, evaluate, make a small model of the large one,
#                 serve both, search for a smaller shape, price all of it; ends in
#                 runs/demo/summary.json (PRESET=tiny: a small one in 5 minutes)
# make serve      the demo's models on 127.0.0.1:8000: a page at /, API docs at /docs (a tiny one,
#                 made now, where there was no demo; ARGS=--http.port=9000 changes settings)
# make test       what CI runs: lint, then every test but the slow ones
# make test-full  the slow ones too
SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: setup demo serve test test-full lint format clean

PYTHON ?= python3.11
PRESET ?= demo
VENV := .venv
# Programs of the environment first: DeepSpeed looks for ninja on the path.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# The stamp's name changes with what it was made from, so a changed pin installs again.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)

setup: $(STAMP)

$(STAMP):
	@command -v $(PYTHON) > /dev/null || { echo "error: $(PYTHON) not found; set PYTHON=…" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo 'installing pinned packages into $(VENV) (about 2.5 GB, some minutes)'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,tracking,report,balancing,peft,inference,serve,search,bench,dev]' --constraint constraints.txt
	rm -f $(VENV)/.installed-*
	touch $@

demo: setup
	python -m jobs.demo --preset $(PRESET)

# What the demo made of PRESET; where that is nothing, of a tiny one, which takes 5 minutes to make.
serve: setup
	@set -e; preset=$(PRESET); \
	if [ ! -e runs/$$preset-small/package/policy.json ]; then \
	  echo "runs/$$preset-small has no package to serve (make demo); taking a tiny one"; preset=tiny; fi; \
	if [ ! -e runs/$$preset-small/package/policy.json ]; then python -m jobs.demo --preset tiny; fi; \
	costs=runs/$$preset/cost/cost.json; \
	exec python -m serve.app --models.shop.small=runs/$$preset-small/package --models.shop.large=runs/$$preset/package \
	  $$([ ! -e $$costs ] || echo --models.shop.cost=$$costs) $(ARGS)

# Integration tests run Ray clusters and take all cores by themselves, one after the other. They run
# in a child of pytest: the engines in it can crash as a process ends, with every test passed.
INTEGRATION := python -m pytest tests/integration --numprocesses 1
UNIT := OMP_NUM_THREADS=1 python -m pytest tests/unit --numprocesses auto --dist loadfile

test: lint
	$(INTEGRATION) -m 'not slow'
	$(UNIT) -m 'not slow'

test-full: lint
	$(INTEGRATION)
	$(UNIT)

lint: setup
	ruff check .
	ruff format --check .
	mypy rectrain jobs serve

format: setup
	ruff check --fix .
	ruff format .

# Runs and prepared data are yours: nothing here removes them.
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
