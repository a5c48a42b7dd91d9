# make setup      the environment alone (.venv)
# make demo       prepare the embedded data, train, evaluate, make a small model of the large one;
#                 ends in runs/demo/summary.json (PRESET=tiny: a small one in 4 minutes)
# make serve      the models of runs/PRESET on 127.0.0.1:8000: a page at /, API docs at /docs
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
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[demo,tracking,report,balancing,peft,inference,serve,bench,dev]' --constraint constraints.txt
	rm -f $(VENV)/.installed-*
	touch $@

demo: setup
	python -m jobs.demo --preset $(PRESET)

# The run's model; a small one in front of it, where one was made.
LARGE := runs/$(PRESET)/package
SMALL := $(wildcard runs/$(PRESET)-small/package)
PAIR := $(if $(SMALL),--models.shop.small=$(SMALL) --models.shop.large=$(LARGE),--models.shop.small=$(LARGE) --models.shop.large=null)

serve: setup
	@test -d $(LARGE) || { echo "error: $(LARGE) is not there; fix: make demo PRESET=$(PRESET) && python -m jobs.publish --checkpoint runs/$(PRESET) --output $(LARGE)" >&2; exit 2; }
	python -m serve.app --config serve/settings.yaml $(PAIR)

# Integration tests run Ray clusters and take all cores by themselves.
test: lint
	python -m pytest tests/integration -m 'not slow'
	OMP_NUM_THREADS=1 python -m pytest tests/unit --numprocesses auto --dist loadfile

test-full: lint
	python -m pytest tests/integration
	OMP_NUM_THREADS=1 python -m pytest tests/unit --numprocesses auto --dist loadfile

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
