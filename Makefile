# Needs Python 3.11 or newer with venv and ensurepip, and make; takes uv when it is there.

SHELL := /bin/sh
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
# Relative, so that the checkout's path may have spaces.
BIN := .venv/bin
PY := $(BIN)/python
STAMP := .venv/installed
EXTRAS ?= dev
FREE_MIB := 1500

.DEFAULT_GOAL := help
.PHONY: help install demo test bench bench-quick check generated lint types test-all test-faults test-polyglot polyglot-stubs \
	generate format clean preflight

help: ## Show what there is to make.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## Make .venv with everything; does nothing when it is there.
	@echo "Installed in .venv: $$($(BIN)/karta-runtime --version)"

demo: $(STAMP) ## Show the main job with the real Claude Code and a scripted model; MODEL=real for your own login.
	@$(PY) -m karta_server.testing.demo $(if $(MODEL),--model $(MODEL))

test: $(STAMP) ## Run all tests that need only Python and pip packages.
	@$(PY) -m pytest -q $(TESTS)

bench: $(STAMP) ## Measure Karta beside its peers, 7 rounds each; ROWS=P1,P4 for single rows.
	@$(PY) -m tests.bench $(if $(ROWS),--rows $(ROWS)) $(BENCH)

bench-quick: $(STAMP) ## The same in under 3 minutes.
	@$(PY) -m tests.bench --quick $(if $(ROWS),--rows $(ROWS)) $(BENCH)

check: generated lint types test ## The gate: generated code, contract, format, style, types, tests.

test-all: test-faults test-polyglot ## Run what needs more than Python; `make check` runs the rest.

test-faults: $(STAMP) ## Kill -9 at 100 random moments, 1,000 watchers, long property tests; PYTEST_SEED=n repeats one.
	@PYTEST_KILLS=$${PYTEST_KILLS:-100} PYTEST_EXAMPLES=500 PYTEST_LOAD=full $(PY) -m pytest -q -s tests/faults tests/property tests/load

test-polyglot: $(STAMP) ## Build and run the clients in Go, TypeScript and Java, and grpcurl; says what it skips.
	@tests/polyglot/build.sh && $(PY) -m pytest -q tests/polyglot

polyglot-stubs: $(STAMP) ## Generate stubs for Go, TypeScript and Java: tests/polyglot/*/gen.
	@tests/polyglot/build.sh --stubs

generate: $(STAMP) ## Write gen/ anew from proto/.
	@$(PY) gen/generate.py

format: $(STAMP) ## Format the contract and the code.
	@$(BIN)/buf format -w
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format .

clean: ## Remove .venv and caches; no state of any project.
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	cd tests/polyglot && rm -rf build */gen */build */dist */node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

generated: $(STAMP)
	@echo "generated code" && $(PY) gen/generate.py --check

lint: $(STAMP)
	@echo "contract" && $(BIN)/buf lint && $(BIN)/buf format --diff --exit-code && $(BIN)/buf breaking --against gen/frozen.binpb
	@echo "format and style" && $(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(STAMP)
	@echo "types" && $(PY) -m mypy

# What a fresh machine lacks is said before anything is written.
preflight:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Karta needs Python 3.11 or newer, and found $$(python3 --version 2>/dev/null || echo no python3)."; \
		echo "Install it (Debian, Ubuntu: sudo apt-get install python3 python3-venv), or name one: make PYTHON=/path/to/python3.11"; \
		exit 1; fi
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || command -v uv >/dev/null || { \
		v=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		echo "$(PYTHON) lacks the modules venv and ensurepip. On Debian or Ubuntu: sudo apt-get install python$$v-venv"; \
		exit 1; }
	@free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1024) }'); \
	if [ "$$free" -lt $(FREE_MIB) ]; then \
		echo "Only $$free MiB are free here; the installation takes about $(FREE_MIB) MiB, most of it Claude Code. Free some first."; \
		exit 1; fi

$(STAMP): pyproject.toml
	@$(MAKE) --no-print-directory preflight
	@if command -v uv >/dev/null; then \
		echo "Installing into .venv with uv ..." && \
		{ [ -x $(PY) ] || uv venv --quiet --python $(PYTHON) .venv; } && \
		uv pip install --python $(PY) --editable '.[$(EXTRAS)]'; \
	else \
		echo "Installing into .venv, about 450 MB to load ..." && \
		{ $(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv; } && \
		$(PY) -m pip install --disable-pip-version-check --progress-bar on --editable '.[$(EXTRAS)]'; \
	fi
	@touch $(STAMP)
