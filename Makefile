# Every target makes .venv by itself the first time, and reuses it after that.
# PYTHON chooses the interpreter it is made with; ARGS is handed on: make test ARGS="-k adam".
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
PARITY := .venv-parity
ECOSYSTEM := .venv-ecosystem

.PHONY: help install demo results test test-all sabotage lint format bench bench-gpu parity bench-parity ecosystem docs browser wheels clean
.DELETE_ON_ERROR:

help:
	@echo "make demo     train with several optimizers on real text, and draw the result"
	@echo "make results  make all comparisons of docs/results.md again; takes hours, and goes on where it was"
	@echo "make test     run the tests; of large products of parameters, a selection with all pairs"
	@echo "make test-all run them with every case of these products; takes several times as long"
	@echo "make sabotage break the code on purpose, in a copy, and see whether the tests notice"
	@echo "make lint     ruff, ruff-format, mypy, and import-linter: who may import whom"
	@echo "make format   let ruff mend what it can"
	@echo "make bench    time steps, chains, refreshes and transforms against torch and scipy"
	@echo "make bench-gpu  time chains and recipes on a GPU against torch's fused AdamW"
	@echo "make parity   compare the recipes with their authors' packages, in an environment of its own"
	@echo "make bench-parity  time them against these, in the same environment"
	@echo "make ecosystem  run with transformers, Accelerate, Lightning, TRL, PEFT and others, in an environment of its own"
	@echo "make docs     write the pages that follow from the code, and build the site in site/"
	@echo "make browser  search the site, and look for formulas that are cut, in Chromium, if it is installed"
	@echo "make wheels   build the kernel and all plugins into dist/"
	@echo "make install  only make .venv"
	@echo "make clean    remove .venv, the demo's output and all caches"

install: $(READY)

$(READY): pyproject.toml constraints.txt requirements-dev.txt $(wildcard plugins/*/pyproject.toml)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo >&2 \
	  "projcore needs Python 3.10 or newer, and '$(PYTHON)' is not one." \
	  "Name another: make PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv; the first time, this takes some minutes."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt hatchling editables
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt \
	  --no-build-isolation -r requirements-dev.txt
	@touch $@

demo: $(READY)
	$(BIN)/projcore compare text --output demo --resume $(ARGS)

results: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m docs.results $(ARGS)

# One thread per worker: the workers share the cores already. A file is one worker's, which makes
# what its tests share once; files marked as long come first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 \
  --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST) $(ARGS)

test-all: $(READY)
	$(PYTEST) --exhaustive $(ARGS)

sabotage: $(READY)
	$(BIN)/python -m tools.sabotage $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/step.py $(ARGS)
	$(BIN)/python benchmarks/chains.py
	$(BIN)/python benchmarks/switches.py
	$(BIN)/python benchmarks/lowrank.py
	$(BIN)/python benchmarks/refresh.py
	$(BIN)/python benchmarks/transforms.py

bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu $(ARGS)

parity: $(PARITY)/ready
	OMP_NUM_THREADS=1 $(PARITY)/bin/python -m pytest -c parity/pytest.ini parity $(ARGS)

bench-parity: $(PARITY)/ready
	PYTHONPATH=parity/stand_ins $(PARITY)/bin/python benchmarks/lowrank.py --peers $(ARGS)

# The authors' packages without what they depend on: parity/stand_ins has what their import needs.
$(PARITY)/ready: pyproject.toml constraints.txt parity/requirements.txt $(wildcard plugins/*/pyproject.toml)
	@$(PARITY)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(PARITY)
	@echo "Installing into $(PARITY)."
	@$(PARITY)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt hatchling editables
	@$(PARITY)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt \
	  --no-build-isolation numpy pytest -e . \
	  $(addprefix -e ,$(filter-out %-lab,$(wildcard plugins/projcore-*)))
	@$(PARITY)/bin/python -m pip install -q --disable-pip-version-check --no-deps -r parity/requirements.txt
	@touch $@

# The pages that need these packages, and tests with them. Nothing is fetched from a hub.
ecosystem: $(ECOSYSTEM)/ready
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(ECOSYSTEM)/bin/python -m pytest -W ignore \
	  tests/test_readme.py tests/ecosystem/packages -k "ecosystem or coming" $(ARGS)

$(ECOSYSTEM)/ready: pyproject.toml constraints.txt tests/ecosystem/packages/requirements.txt \
  $(wildcard plugins/*/pyproject.toml)
	@$(ECOSYSTEM)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(ECOSYSTEM)
	@echo "Installing into $(ECOSYSTEM); the first time, this takes some minutes."
	@$(ECOSYSTEM)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt hatchling editables torch
	@$(ECOSYSTEM)/bin/python -m pip install -q --disable-pip-version-check --no-build-isolation -e .[test] \
	  $(addprefix -e ,$(wildcard plugins/projcore-*)) -r tests/ecosystem/packages/requirements.txt
	@touch $@

docs: $(READY)
	$(BIN)/python -m docs.generate
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

browser: $(READY)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt playwright==1.65.2
	$(BIN)/python -m pytest tests/docs/test_browser.py $(ARGS)

wheels: $(READY)
	rm -rf dist
	for folder in . plugins/*; do \
	  (cd $$folder && "$(CURDIR)/$(BIN)/python" -m hatchling build -t wheel -d "$(CURDIR)/dist") || exit; \
	done

clean:
	rm -rf .venv $(PARITY) $(ECOSYSTEM) .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis demo dist site
	find projcore plugins tests parity -name __pycache__ -type d -prune -exec rm -rf {} +
