# Every target makes .venv by itself the first time, and reuses it after that.
# PYTHON chooses the interpreter it is made with; ARGS is handed on: make test ARGS="-k adam".
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
PARITY := .venv-parity
RELEASE := .venv-release
ECOSYSTEM := .venv-ecosystem
TORCH := .venv-torch-$(VERSION)
BUILD := hatchling editables hatch-fancy-pypi-readme

.PHONY: help install demo results test test-all test-torch test-versions sabotage lint format bench bench-gpu \
  parity bench-parity ecosystem docs browser wheels dist changelog clean
.DELETE_ON_ERROR:

help:
	@echo "make demo     train with several optimizers on real text, and draw the result"
	@echo "make results  make all comparisons of docs/results.md again; takes hours, and goes on where it was"
	@echo "make test     run the tests; of large products of parameters, a selection with all pairs"
	@echo "make test-all run them with every case of these products; takes several times as long"
	@echo "make test-torch VERSION=2.14.1  run the tests with that version of torch"
	@echo "make test-versions  run those of discovery with the oldest and newest pluggy and importlib-metadata"
	@echo "make sabotage break the code on purpose, in a copy, and see whether the tests notice"
	@echo "make lint     ruff, ruff-format, mypy, and import-linter: who may import whom"
	@echo "make format   apply automatic fixes"
	@echo "make bench    time steps, chains, refreshes and transforms against torch and scipy"
	@echo "make bench-gpu  time chains and recipes on a GPU against torch's fused AdamW"
	@echo "make parity   compare the recipes with their authors' packages, in an environment of its own"
	@echo "make bench-parity  time them against these, in the same environment"
	@echo "make ecosystem  run with transformers, Accelerate, Lightning, TRL, PEFT and others, in an environment of its own"
	@echo "make docs     write the pages that follow from the code, and build the site in site/"
	@echo "make browser  search the site, and look for formulas that are cut, in Chromium, if it is installed"
	@echo "make wheels   build the wheels of the kernel and all plugins into dist/"
	@echo "make dist     build wheels and sdists, and check their contents and metadata"
	@echo "make changelog VERSION=0.2.0  write CHANGELOG.md from the fragments; ARGS=--draft only shows it"
	@echo "make install  only make .venv"
	@echo "make clean    remove .venv, the demo's output and all caches"

install: $(READY)

$(READY): pyproject.toml constraints.txt requirements-dev.txt $(wildcard plugins/*/pyproject.toml)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || { echo >&2 \
	  "projcore needs Python 3.10 or newer, and '$(PYTHON)' is not one." \
	  "Name another: make PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv; the first time, this takes some minutes."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt $(BUILD)
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

test-torch: $(TORCH)/ready
	OMP_NUM_THREADS=1 $(TORCH)/bin/python -m pytest -n auto --maxprocesses 8 \
	  --dist loadfile --no-loadscope-reorder $(ARGS)

# The build for the CPU, where an index offers it: the other brings gigabytes of CUDA.
$(TORCH)/ready: pyproject.toml constraints.txt requirements-dev.txt $(wildcard plugins/*/pyproject.toml)
	@test -n "$(VERSION)" || { echo >&2 "Name a version: make test-torch VERSION=2.14.1"; exit 1; }
	@$(TORCH)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(TORCH)
	@echo "Installing into $(TORCH)."
	@grep -v "^torch==" constraints.txt > $(TORCH)/constraints.txt
	@install="$(TORCH)/bin/python -m pip install -q --disable-pip-version-check -c $(TORCH)/constraints.txt" && \
	  { $$install torch==$(VERSION)+cpu $(BUILD) 2>/dev/null || $$install torch==$(VERSION) $(BUILD); } && \
	  $$install --no-build-isolation -r requirements-dev.txt
	@touch $@

# Versions of pluggy and importlib-metadata that are claimed, laid over .venv.
PAIRS ?= 1.5.0+8.0.0 1.6.0+8.7.1 1.7.0+9.0.1 1.7.0+10.2.0

test-versions: $(READY)
	for pair in $(PAIRS); do \
	  folder=$(CURDIR)/.venv-versions/$$pair; \
	  echo "pluggy $${pair%+*}, importlib-metadata $${pair#*+}"; \
	  test -d $$folder || $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps \
	    --target $$folder pluggy==$${pair%+*} importlib-metadata==$${pair#*+} || exit; \
	  PYTHONPATH=$$folder $(PYTEST) tests/discovery $(ARGS) || exit; \
	done

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
	$(BIN)/python -m benchmarks.floors
	$(BIN)/python -m benchmarks.experts
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

# The authors' packages without their dependencies: parity/stand_ins has those that importing needs.
$(PARITY)/ready: pyproject.toml constraints.txt parity/requirements.txt $(wildcard plugins/*/pyproject.toml)
	@$(PARITY)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(PARITY)
	@echo "Installing into $(PARITY)."
	@$(PARITY)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(BUILD)
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
	@$(ECOSYSTEM)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt $(BUILD) torch
	@$(ECOSYSTEM)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt \
	  --no-build-isolation -e .[test] $(addprefix -e ,$(wildcard plugins/projcore-*)) \
	  -r tests/ecosystem/packages/requirements.txt
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

dist: $(READY) $(RELEASE)/ready
	rm -rf dist
	for folder in . plugins/*; do \
	  (cd $$folder && "$(CURDIR)/$(BIN)/python" -m hatchling build -d "$(CURDIR)/dist") || exit; \
	done
	$(RELEASE)/bin/twine check --strict dist/*
	$(RELEASE)/bin/check-wheel-contents dist/*.whl
	$(RELEASE)/bin/cffconvert --validate

changelog: $(RELEASE)/ready
	@test -n "$(VERSION)" || { echo >&2 "Name the version: make changelog VERSION=0.2.0"; exit 1; }
	$(RELEASE)/bin/towncrier build --version $(VERSION) $(ARGS)

$(RELEASE)/ready: requirements-release.txt
	@$(RELEASE)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(RELEASE)
	@echo "Installing into $(RELEASE)."
	@$(RELEASE)/bin/python -m pip install -q --disable-pip-version-check -r requirements-release.txt
	@touch $@

clean:
	rm -rf .venv .venv-* .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis demo dist site
	find projcore plugins tests parity -name __pycache__ -type d -prune -exec rm -rf {} +
