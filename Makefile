# The commands of this repository; each makes the Python environment it needs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
QUIETLY := --disable-pip-version-check --no-input

# Containers often set it. Then every process compiles every module again, and the tests start hundreds of them.
unexport PYTHONDONTWRITEBYTECODE

TEST13 ?=

.PHONY: help run chat demo test test13 lint bench bench-guard bench-peers chaos conformance compiled wheels clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(READY) ## start RabbitMQ, Postgres and the bridge, until Ctrl-C; with WORKERS=2 in two processes
	@echo "a group chat: \`make chat\` in another shell, then http://127.0.0.1:8183/"
	@$(BIN)/bridge dev $(if $(WORKERS),--workers $(WORKERS))

chat: $(READY) ## a group chat in the browser, while `make run` runs in another shell, until Ctrl-C
	@[ -f .dev/env ] || { echo "start make run in another shell first"; exit 1; }
	@set -a; . .dev/env; exec $(BIN)/python examples/chat/backend.py

demo: $(READY) ## the whole story in a minute: push, receive, compare with the delivery log
	@$(BIN)/bridge demo

test: $(READY) lint ## everything that must hold: linters, types, floors, tests on servers of their own
	@$(BIN)/python -m bridge.devservers ensure chromium pgbouncer nginx haproxy caddy promtool
	@echo "tests"
	@$(BIN)/python -m pytest -n 3 --dist loadfile

test13: $(READY) ## the tests on Debian 13, unpacked into .dev: Python 3.13, RabbitMQ 4.0, Postgres 17; as root
	@$(BIN)/python -m tests.support.debian13 $(TEST13)

lint: $(READY) ## linters, formatting, types, and who may import whom
	@echo "ruff";         $(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . || \
		{ echo "fix with: $(BIN)/ruff check --fix . && $(BIN)/ruff format ."; exit 1; }
	@echo "mypy";         $(BIN)/mypy
	@echo "lint-imports"; out=$$($(BIN)/lint-imports --no-logo 2>&1) || { echo "$$out"; exit 1; }

conformance: $(READY) ## Autobahn's WebSocket cases against the server; needs Python 2.7, and pip for it
	@$(BIN)/python -m tests.support.conformance

bench: $(READY) ## this bridge against a naive one, on servers of their own
	@$(BIN)/python -m benchmarks

bench-peers: $(READY) ## this bridge beside a batched Node bridge, RabbitMQ's web plugins, NATS and others
	@$(BIN)/python -m benchmarks --only peers

bench-guard: $(READY) ## is a push more expensive than in the parent commit? a few minutes; 1 above five percent
	@$(BIN)/python -m benchmarks.guard

chaos: $(READY) ## over an hour of faults, each checked against the promises; docs/reliability.md
	@$(BIN)/python -m benchmarks.chaos

compiled: $(READY) ## the core's tests on a copy in build/compiled whose core is compiled with mypyc; needs gcc
	@$(BIN)/python -m tests.support.compiled

wheels: $(READY) ## two wheels in dist: one compiled for this Python and machine, and one for all; needs gcc
	@BRIDGE_PURE=0 $(BIN)/python -m pip wheel $(QUIETLY) --no-deps --wheel-dir dist --verbose . 2>&1 | \
		{ grep '^ *bridge: ' || { echo "failed: BRIDGE_PURE=0 $(BIN)/python -m pip wheel . says why"; exit 1; }; }
	@BRIDGE_PURE=1 $(BIN)/python -m pip wheel $(QUIETLY) --no-deps --wheel-dir dist --quiet .
	@ls dist/bridge-*.whl

clean: ## remove all that the other commands made: .venv, the servers' data in .dev, caches
	@[ ! -d .dev ] || $(PYTHON) -m bridge.devservers forget .dev
	@rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed: install it, or name it with make PYTHON=..."; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m bridge.devservers ensure venv
	@[ -x $(BIN)/python ] || { echo "making a Python environment in .venv"; $(PYTHON) -m venv .venv; } || \
		{ rm -rf .venv; echo "python -m venv failed; on Debian: sudo apt-get install python3-venv"; exit 1; }
	@echo "installing the pinned dependencies (a minute or so at the first time)"
	@BRIDGE_PURE=1 $(BIN)/python -m pip install --quiet $(QUIETLY) -c constraints.txt -e '.[dev]'
	@touch $@
