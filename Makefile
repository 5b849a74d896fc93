# `make help` lists what there is. Everything happens inside .venv; nothing else on the machine is touched.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DEV := .venv/.installed-dev

.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  make %-11s %s\n", $$1, $$2}'

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check

$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	@touch $@

$(DEV): $(STAMP)
	$(INSTALL) -e ".[dev]"
	@touch $@

install: $(STAMP)  ## create .venv with the program and everything it needs

install-dev: $(DEV)  ## add what tests, lint and all launchers need

demo: $(STAMP)  ## train a 200-layer SELU-GPN network on scikit-learn's digits, about two minutes on two cores
	$(BIN)/bsnn train activation=selu_gpn dataset=digits optim.epochs=17
	$(BIN)/bsnn table

PROFILE ?= smoke
reproduce: $(STAMP)  ## the paper's results from start to end; PROFILE=smoke (minutes), short (hours), paper (a GPU)
	$(BIN)/bsnn reproduce profile=$(PROFILE)

report: $(STAMP)  ## write outputs/report/index.html, a page of everything that is stored
	$(BIN)/bsnn report

results: PROFILE = short
results: $(STAMP)  ## the results in docs/results: PROFILE=short unless said, and all that is stored, without weights
	$(BIN)/bsnn reproduce profile=$(PROFILE) export=docs/results$(if $(filter depth_aware,$(PROFILE)),/depth_aware)

table: $(STAMP)  ## rebuild the accuracy tables from all finished runs
	$(BIN)/bsnn table

approaches: $(STAMP)  ## measure every approach at full size, a few seconds each, and print the comparison
	$(BIN)/bsnn propagate -m 'approach=glob(*)'
	$(BIN)/bsnn table kind=approaches

figures: $(STAMP)  ## draw the paper's figures from all stored numbers; says which command makes those that are missing
	$(BIN)/bsnn figures

test: $(DEV)  ## run the test suite, on two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

torture: $(DEV)  ## the long fault-injection tests: hundreds of kills, all engines, about half an hour
	$(BIN)/python -m pytest -m torture --timeout 3600

gpu-check: $(DEV)  ## on a machine with a GPU: the tests that need one, then the benchmark, under 8 minutes
	@$(BIN)/python -c 'import torch; raise SystemExit(0 if torch.cuda.is_available() else "no CUDA device here: nothing was checked")'
	$(BIN)/python -m pytest -m cuda
	$(BIN)/bsnn bench growth=true

lint: $(DEV)  ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test  ## all that CI runs

clean:  ## remove caches and build products; runs, data and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: help install install-dev demo reproduce report results table approaches figures test torture gpu-check lint check clean
