# Two commands do everything, set-up included:  make studies   and   make test
PYTHON   ?= python3
VENV     := .venv
BIN      := $(VENV)/bin
PACKAGES := core finance qec neuro ssl
STAMP    := $(VENV)/.ready
SOURCES  := $(foreach p,$(PACKAGES),packages/$(p)/src)

# One thread per process: the test runner and the study runner bring the parallelism.
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help setup studies test verify lint format bench wheels gallery papers lock clean

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Make the environment in .venv (once; a few minutes)

$(STAMP): constraints.txt requirements-dev.txt $(foreach p,$(PACKAGES),packages/$(p)/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(f"symdyn needs Python 3.11 or newer, this is {sys.version.split()[0]}" if sys.version_info < (3, 11) else 0)'
	@echo "== making .venv: five packages and what they stand on (about 1 GB, a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt \
		-e packages/core[dask] -e packages/qec[baselines] $(foreach p,$(filter-out core qec,$(PACKAGES)),-e packages/$(p))
	@touch $@
	@echo "== .venv is ready; the command is $(BIN)/symdyn"

studies: setup  ## Run every study at its quick preset and write out/index.html
	@status=0; $(BIN)/symdyn run || status=$$?; \
	if [ $$status -lt 2 ]; then $(BIN)/symdyn gallery || status=$$?; fi; exit $$status

test: lint  ## Lint, types, floors, then every test
	@$(BIN)/pytest -q -n auto --dist worksteal -m "not verify"

verify: setup  ## The long check: every study on fresh seeds and over its settings
	@$(BIN)/pytest -q -n auto --dist worksteal -m verify

lint: setup  ## ruff, mypy --strict on the sources, import floors
	@echo "== ruff" && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "== mypy --strict" && $(BIN)/mypy $(SOURCES)
	@echo "== import floors" && $(BIN)/lint-imports

format: setup  ## Let ruff mend what it can
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: setup  ## Run every package's benchmarks against its peers
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e packages/core[bench] -e packages/finance[bench]
	@for script in packages/*/benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

wheels: setup  ## Build the five wheels into dist/
	@for package in $(PACKAGES); do (cd packages/$$package && ../../$(BIN)/python -m hatchling build -t wheel -d ../../dist) || exit 1; done

gallery: setup  ## Write out/index.html from the records there are
	@$(BIN)/symdyn gallery

papers: setup  ## Write docs/papers.md from the registered studies
	@$(BIN)/python tools/papers.py

lock:  ## Resolve the newest versions of everything into constraints.txt
	@$(PYTHON) tools/lock.py

clean:  ## Remove the environment, the records and the caches
	rm -rf $(VENV) out dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
