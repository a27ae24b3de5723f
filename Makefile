# `make` alone lists the targets. Everything is installed into .venv, and nothing outside it but by
# `make lab`. Another Python beside it: make setup PYTHON=/path/to/python3.12 VENV=.venv312
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# A name on PATH may be a version manager's shim that refuses to start, so each is tried.
PYTHON ?= $(shell for p in python3.11 python3.12; do $$p -c pass 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LAB_INSTALLED := $(VENV)/.installed-lab
SUDO := $(shell test "$$(id -u)" = 0 || echo sudo -E)

# The interpreter comes from the machine: a silent download would test another than the one named.
export UV_PYTHON_DOWNLOADS := never
# The machine may trust an authority of its own, as pip does by its settings.
export UV_SYSTEM_CERTS := true
# Compiled now, so that no dependency's syntax warning appears in the first run of the tests, where
# warnings are errors.
export UV_COMPILE_BYTECODE := true
# uv takes two seconds where pip takes thirty: the machine's own, else the locked one. Where neither
# reaches a registry pip may, since uv does not read pip's settings.
UV = $$(uv --version >/dev/null 2>&1 && echo uv || { test -x $(BIN)/uv && echo $(BIN)/uv; } || echo false)
PIP = $(PYTHON) -m pip --quiet --python $(BIN)/python
install = $(UV) pip install --quiet --python $(BIN)/python $(1) || $(PIP) install $(1)
# Writes one distribution's entry of a lock, with its hashes, to a lock of its own in the venv.
entry = awk '/^[a-z]/ { wanted = /^$(1)==/ } wanted' $(2) >$(VENV)/$(1).lock

.PHONY: help setup lab demo test units integration lint bench accuracy e2e lock simulate mutants
help: ## List the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

setup: $(INSTALLED) ## Install Flatline and its tools into .venv, as locked

$(INSTALLED): requirements.lock pyproject.toml $(BIN)/python
	@$(call entry,uv,requirements.lock)
	@test $(UV) != false || $(PIP) install --only-binary :all: --require-hashes -r $(VENV)/uv.lock || true
	@$(call install,--require-hashes -r requirements.lock)
	@$(call install,--no-deps --no-build-isolation -e .)
	@touch $@

# Without pip, which Debian splits off: the machine's own pip or uv installs into it.
$(BIN)/python:
	@$(if $(PYTHON),$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))',false) || { echo "Flatline needs Python 3.11 or 3.12. Name one: make setup PYTHON=/path/to/it"; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || uv --version >/dev/null 2>&1 || { echo "Neither pip nor uv is here to install with: apt-get install python3-pip, or see uv's own page."; exit 1; }
	@$(PYTHON) -m venv --without-pip $(VENV)

lab: $(LAB_INSTALLED) ## Install what the integration tests need of the machine (Debian, root)
$(LAB_INSTALLED): $(INSTALLED) requirements-node.lock deploy/lab/packages deploy/lab/influx-build
	@$(SUDO) deploy/lab/packages kafka
	@deploy/lab/influx-build >/dev/null
	@$(SUDO) deploy/lab/packages libvirt
	@$(call entry,libvirt-python,requirements-node.lock)
	@$(call install,--require-hashes -r $(VENV)/libvirt-python.lock)
	@touch $@

demo: setup ## Watch 200 simulated VMs fail and be repaired; ends by itself
	@$(BIN)/flatline demo

# Unit tests use all cores. The tests of one file run in one process, because they share fixtures.
TIMED = $(addprefix tests/,tidy unit contracts scenarios)
VIRTUAL = $(addprefix tests/,simulation examples)
PYTEST_ALL = $(BIN)/pytest -n auto --dist loadfile -o cache_dir=.pytest_cache
# pytest exits with 5 where the machine can run none of them.
INTEGRATION = { $(BIN)/pytest tests/integration || test $$? -eq 5; }

# In CI every test is required; elsewhere what the machine cannot run is left out and named.
# Integration tests wait for servers and guests most of the time. Tests in virtual time run beside
# them, at the lowest priority; tests with real time limits would get too little of the CPU there.
test: setup $(if $(CI),lab) ## Run all tests
	@$(PYTEST_ALL)/timed $(TIMED)
	@setsid sh -c '{ echo 19 >/proc/self/autogroup; } 2>/dev/null; exec nice -n 19 $(PYTEST_ALL)/virtual $(VIRTUAL)' \
		>.pytest_cache/virtual.log 2>&1 & virtual=$$!; trap "kill -- -$$virtual 2>/dev/null || true" EXIT; \
	$(INTEGRATION) && tests=0 || tests=$$?; wait $$virtual && beside=0 || beside=$$?; \
	cat .pytest_cache/virtual.log; exit $$((tests | beside))

units: setup ## Run the tests that need no server
	@$(PYTEST_ALL)/units $(TIMED) $(VIRTUAL)

integration: setup $(if $(CI),lab) ## Run the tests with real servers and guests
	@$(INTEGRATION)

e2e: setup $(if $(CI),lab) ## Run the tests with a real broker and real guests alone
	@$(BIN)/pytest -m "kafka and libvirt"

lint: setup ## Check format, style, types and import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

bench: setup ## Measure; tables on the screen, figures in reports/
	@for path in benchmarks/bench_*.py; do $(BIN)/python -m benchmarks.$$(basename "$$path" .py); done

SIM_VM_DAYS ?= 100
accuracy: setup ## Judge detection on all developer data; fails where it fell behind what was committed
	@$(BIN)/python -m benchmarks.accuracy --sim-vm-days $(SIM_VM_DAYS) $(if $(COMMIT),--commit)

COMPILE = $(UV) pip compile --quiet --upgrade --universal --generate-hashes --no-header --python-version 3.11
lock: setup ## Resolve both locks anew
	@$(COMPILE) --extra dev pyproject.toml -o requirements.lock
	@$(COMPILE) --group node -c requirements.lock -o requirements-node.lock

SEEDS ?= 1000
FIRST ?= 0
simulate: setup ## Play SEEDS=1000 seeded half hours with every fault, from FIRST=0 on (FAMILY=one of them)
	@$(BIN)/python -m tests.simulation.simulate --seeds $(SEEDS) --first $(FIRST) $(if $(FAMILY),--family $(FAMILY))

mutants: setup ## Remove each guard in turn; the tests must notice (SLICE=n: n more of them)
	@$(BIN)/python -m tests.mutants $(if $(SLICE),--slice $(SLICE))
