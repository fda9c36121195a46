# demo   prune a real model through the service, from nothing      test    the whole suite
# serve  the service on this machine                              lint    ruff, mypy, import contracts
# bench  the benchmarks in benchmarks/                            chaos   kill processes at random, lose nothing
# digests  which results a change since BASE alters                methods-real  the table of a model of 135 M parameters
# verdicts  what reports say of speed on a disturbed machine
# golden  all comparisons with the authors' figures               methods every pruner with every allocator, docs/methods.md
# gpu    every kind of job on a GPU beside the CPU, and the benchmark there; goes on where it was interrupted
# training  pruning while training beside pruning once and training as long: hours, goes on where it was interrupted
# families  every family that transformers builds, each kind of job on a tiny one: docs/families.md; goes on likewise
# mlflow  publishing to MLflow's own server, which it installs in an environment of its own
# wheel  dist/espalier_llm-….whl: the Python client and, with its extras, the service
# upgrade  migrations with 100,000 jobs while the API of the version before serves
# docs   what is generated: tables of README.md and docs/, the synchronous client
# deploy-check  the Helm chart against Kubernetes' schemas, the Dockerfile, compose and alert rules, offline
.PHONY: mlflow demo serve test lint bench chaos golden digests methods methods-real methods-mixture training verdicts gpu families docs wheel deploy-check upgrade setup
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt

demo: .venv/.installed-demo ; $(BIN)/python examples/demo.py
serve: .venv/.installed-demo ; $(BIN)/espalier serve
# One process more than there are cores: tests of a whole service wait for it.
test: setup ; .ci/chromium; .ci/prometheus; $(BIN)/pytest --numprocesses $$(( $$(nproc) + 1 )) --maxprocesses 9 --dist loadgroup
lint: setup ; $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports && $(BIN)/python docs/render.py --check && $(BIN)/python .ci/unasync.py --check
bench: setup ; $(BIN)/python -m benchmarks.load && $(BIN)/python -m benchmarks.latency
golden: setup ; $(BIN)/pytest tests/golden -m "golden or not golden" --log-cli-level=info
methods: setup ; $(BIN)/python -m benchmarks.methods && $(BIN)/python -m benchmarks.structured
methods-real: setup ; $(BIN)/python -m benchmarks.real_model
methods-mixture: setup ; $(BIN)/python -m benchmarks.mixtures
training: setup ; $(BIN)/python -m benchmarks.training
upgrade: setup ; $(BIN)/python -m benchmarks.upgrade
deploy-check: .venv/.installed-deploy
	$(BIN)/hadolint --failure-threshold info Dockerfile
	$(BIN)/pytest tests/deploy -m "deploy or not deploy"
	promtool check rules deploy/prometheus/alerts.yml && promtool test rules deploy/prometheus/alerts_test.yml
digests: setup ; $(BIN)/python -m benchmarks.digests $(or $(BASE),main)
verdicts: setup ; $(BIN)/python -m benchmarks.verdicts
gpu: setup ; $(BIN)/python -m benchmarks.gpu
families: setup ; $(BIN)/python -m tests.families && $(BIN)/python docs/render.py
mlflow: setup ; test -x .venv-mlflow/bin/mlflow || { $(PYTHON) -m venv .venv-mlflow && .venv-mlflow/bin/pip install mlflow==3.17.2; }; $(BIN)/pytest tests/app/test_publish_mlflow.py -m mlflow
chaos: setup ; $(BIN)/pytest tests/chaos -m chaos
docs: setup ; $(BIN)/python docs/render.py && $(BIN)/python .ci/unasync.py

wheel: setup ; rm -rf build && $(BIN)/python -m pip wheel --no-deps --wheel-dir dist . && rm -rf build

setup: .venv/.installed .venv/.installed-generators
# What running espalier takes. torch first and alone: where two indexes offer it, pip takes the build that the user chose.
.venv/.installed-demo: pyproject.toml constraints.txt
	@echo "=== 1/3 A virtual environment in .venv, by $(PYTHON)"
	$(PYTHON) -m venv .venv
	@echo "=== 2/3 torch, the largest part"
	$(INSTALL) torch
	@echo "=== 3/3 The other libraries of the service and the engine"
	$(INSTALL) --editable '.[worker]'
	touch $@
# What developing it takes besides: tests, linters, servers to test against.
.venv/.installed: .venv/.installed-demo
	@echo "=== What tests and linters need"
	$(INSTALL) --editable '.[dev]'
	touch $@
# Generators of clients, apart: they and the service want different versions of the same libraries.
.venv/.installed-generators: .venv/.installed examples/dashboard/requirements.txt examples/dashboard/package.json
	@echo "=== Generators of clients"
	$(PYTHON) -m venv .venv/generators
	.venv/generators/bin/python -m pip install --requirement examples/dashboard/requirements.txt
	cp examples/dashboard/package.json .venv/generators/
	PATH=$(CURDIR)/.venv/generators/bin:$$PATH npm install --prefix .venv/generators --ignore-scripts --no-audit --no-fund --no-package-lock \
	  || { echo "=== npm's registry is not reached: generated clients are not tested"; rm -r .venv/generators; }
	touch $@
# What checking deploy/ takes: Helm as a library is 250 MB.
.venv/.installed-deploy: .venv/.installed
	$(INSTALL) --editable '.[deploy]'
	touch $@
