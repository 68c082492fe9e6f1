# `make` alone lists the targets. Needed beforehand: make, and Python 3.11 or newer.

VENV := .venv
PY := $(VENV)/bin/python
PIP := -m pip --disable-pip-version-check install -qq --no-input
VERSIONS := 3.11 3.12 3.13
PYTEST := -m pytest -n 3 --dist worksteal
ARGS :=

.DEFAULT_GOAL := help
.PHONY: help env services run simulate races soak test test-all lint types fmt bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  (make run, test, simulate, soak and bench pass ARGS on: make test ARGS='-k replay')"

env: $(VENV)/.dev ## make .venv with everything for development

services: ## install and start what the tests can use on Debian (as root; not needed)
	@sh scripts/services

run: $(VENV)/.run ## run the order business, killed and restarted on the way
	$(PY) -m examples.orders $(ARGS)

test: lint types ## check and test: style, rooms, types, all tests
	$(PY) $(PYTEST) $(ARGS)

test-all: lint types ## run all tests on Python 3.11, 3.12 and 3.13
	@missing=; for v in $(VERSIONS); do sh scripts/find-python $$v >/dev/null || missing="$$missing $$v"; done; \
	if [ -n "$$missing" ]; then echo "test-all: no interpreter found for Python$$missing" >&2; exit 1; fi
	@for v in $(VERSIONS); do $(MAKE) --no-print-directory test-$$v || exit 1; done

test-3.%: .venv-3.%/.dev
	@echo "== Python 3.$*"
	.venv-3.$*/bin/python $(PYTEST) $(ARGS)

simulate: $(VENV)/.dev ## live through 10,000 random programs in simulated clusters
	$(PY) -m tests.testing.simulation $(ARGS)

soak: $(VENV)/.dev ## run 5,000 random programs on processes and a server that are killed on the way
	$(PY) -m tests.soak $(ARGS)

races: $(VENV)/.dev ## let two do everything at the same instant, 10,000 times over
	PERDURE_ROUNDS=10000 $(PY) $(PYTEST) tests/races -o timeout=0 $(ARGS)

lint: $(VENV)/.dev ## check style and who may import whom
	$(VENV)/bin/ruff check
	$(VENV)/bin/lint-imports

types: $(VENV)/.dev ## check types, strictly
	$(VENV)/bin/pyright --pythonpath $(PY)

fmt: $(VENV)/.dev ## format the code and mend what can be mended
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

bench: $(VENV)/.dev ## measure, and compare with the targets and the peers
	$(PY) -m benchmarks $(ARGS)

clean: ## remove the environments and caches
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .mypy_cache .hypothesis

# A stamp says that an environment holds what the requirement files ask for; it is made again only when they change.
.SECONDARY:

$(VENV)/.run: pyproject.toml requirements-dev.txt
	@python=$$(sh scripts/find-python) || { echo "perdure needs Python 3.11 or newer: neither python3.11 nor python3 is that" >&2; exit 1; }; \
	echo "making $(VENV) with $$python"; $(PY) -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear $(VENV)
	@$(PY) $(PIP) -c requirements-dev.txt -e . rich
	@touch $@

.venv-3.%/.run: pyproject.toml requirements-dev.txt
	@python=$$(sh scripts/find-python 3.$*) || { echo "no interpreter found for Python 3.$*" >&2; exit 1; }; \
	echo "making .venv-3.$* with $$python"; .venv-3.$*/bin/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear .venv-3.$*
	@.venv-3.$*/bin/python $(PIP) -c requirements-dev.txt -e . rich
	@touch $@

%/.dev: %/.run
	@echo "adding what development needs to $*"
	@$*/bin/python $(PIP) -r requirements-dev.txt
	@touch $@
