# kvorum: `make demo` shows it, `make test` proves it; both set up all they need.
#
# Needs Python 3.11 or newer and make. The environment is .venv, with the versions
# that constraints.txt names.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := client node tests deploy examples

.DEFAULT_GOAL := help
.PHONY: help setup demo shop test coverage test-newest chaos check format proto sync sim sim-mutants model bench docs lock clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kvorum needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[node,dev]'
	@touch $@

setup: $(VENV)/.installed  ## Create the environment

demo: setup  ## Start three nodes, import 140,000 records, kill the leader, lose nothing
	$(BIN)/python deploy/local/demo.py

shop: setup  ## Start the example, a bookshop, at http://127.0.0.1:8000
	$(BIN)/python -m examples.shop

# A file is run by one worker, as it may start a cluster for all its tests.
WORKERS := 2
PYTEST_OPTIONS := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test: setup  ## Run all tests, by WORKERS=2 processes
	$(BIN)/python -m pytest $(PYTEST_OPTIONS)

coverage: setup  ## Measure the branches of the client library, and fail below 95 %
	# Without our own plugin, which pytest would import before anything is measured.
	$(BIN)/python -m pytest $(PYTEST_OPTIONS) --quiet -p no:kvorum --cov --cov-report=term --cov-report=json:.coverage.json \
		tests/client tests/patterns tests/integrations
	@$(BIN)/python -c 'import json; covered = json.load(open(".coverage.json"))["totals"]["percent_branches_covered"]; \
		print(f"branches alone: {covered:.1f} %"); raise SystemExit(covered < 95)'

test-newest:  ## Run all tests with the newest versions of everything, in an environment of its own
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --editable '.[node,test]'
	.venv-newest/bin/python -m pip list --format freeze | grep -E '^(grpcio|protobuf|rocksdict)='
	.venv-newest/bin/python -m pytest $(PYTEST_OPTIONS)

# The rest is chosen by `make chaos MINUTES=10 NODES=5 SEED=7 FAULTS=kill-leader,partition`.
chaos: MINUTES = 2
chaos: NODES = 3
chaos: DIRECTORY = .kvorum/chaos
chaos: setup  ## Harm real nodes in every way for MINUTES, and check what their clients saw
	$(BIN)/python -m tests.chaos --minutes $(MINUTES) --nodes $(NODES) --directory $(DIRECTORY) \
		$(if $(FAULTS),--faults $(FAULTS)) $(if $(SEED),--seed $(SEED))

check: setup  ## Format, lint, types, generated code, documentation
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy $(SOURCES)
	$(BIN)/basedpyright
	$(BIN)/python proto/generate.py --check
	$(BIN)/python client/generate_sync.py --check
	$(BIN)/zensical build --strict >/dev/null

docs: setup  ## Build the site of the documentation, in .site
	$(BIN)/zensical build --strict

format: setup  ## Rewrite the sources in the one format
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

proto: setup  ## Generate the Python code of the protocol
	$(BIN)/python proto/generate.py

sync: setup  ## Generate the patterns for threads
	$(BIN)/python client/generate_sync.py

sim: setup  ## Simulate clusters under faults: SEEDS=A:B (fresh ones), EVENTS=5000, BUDGET=120 seconds
	$(BIN)/python -m tests.sim $(if $(SEEDS),--seeds $(SEEDS)) --events $(or $(EVENTS),5000) --budget-seconds $(or $(BUDGET),120)

sim-mutants: setup  ## Take guards away, one at a time, and see the simulator miss each
	$(BIN)/python -m tests.sim.mutants

model: setup  ## Compare the state machine with a model, EXAMPLES=20000 times
	KVORUM_MODEL_EXAMPLES=$(or $(EXAMPLES),20000) $(BIN)/python -m pytest -q tests/machine/test_model.py

bench: setup  ## Measure writes and reads against three local nodes, and print the figures
	$(BIN)/python -m tests.bench.throughput

lock: ## Write constraints.txt anew, with the newest versions that the ranges allow
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet '.[node,dev]' 'grpcio==1.74.*' 'protobuf<7'
	.venv-lock/bin/python -m pip freeze --exclude kvorum > .venv-lock/frozen
	(sed -n '/^#/p' constraints.txt; cat .venv-lock/frozen) > .venv-lock/constraints.txt
	mv .venv-lock/constraints.txt constraints.txt
	rm -rf .venv-lock

clean:  ## Remove the environments and what the tools cache
	rm -rf .venv .venv-newest .venv-lock .site dist .mypy_cache .ruff_cache .pytest_cache .coverage*
	find client node proto tests examples -name __pycache__ -prune -exec rm -rf {} +
