# demo   prune a real model through the service, from nothing      test    the whole suite
# serve  the service on this machine                              lint    ruff, mypy, import contracts
# bench  the benchmarks in benchmarks/                            chaos   kill processes at random, lose nothing
# digests  which results a change since BASE alters                methods-real  the table of a model of 135 M parameters
# golden  all comparisons with the authors' figures               methods every pruner with every allocator, docs/methods.md
.PHONY: demo serve test lint bench chaos golden digests methods methods-real setup
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

demo: setup ; $(BIN)/python examples/demo.py
serve: setup ; $(BIN)/espalier serve
test: setup ; .ci/chromium; $(BIN)/pytest --numprocesses 2 --dist loadgroup
lint: setup ; $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
bench: setup ; $(BIN)/python -m benchmarks.load && $(BIN)/python -m benchmarks.latency
golden: setup ; $(BIN)/pytest tests/golden -m "golden or not golden" --log-cli-level=info
methods: setup ; $(BIN)/python -m benchmarks.methods && $(BIN)/python -m benchmarks.structured
methods-real: setup ; $(BIN)/python -m benchmarks.real_model
digests: setup ; $(BIN)/python -m benchmarks.digests $(or $(BASE),main)
chaos: setup ; $(BIN)/pytest tests/chaos -m chaos

setup: .venv/.installed
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
