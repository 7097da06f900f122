# `make demo` and `make test` need nothing but Python 3.11: they make their environment in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
RECIPES_READY := $(VENV)/.recipes-ready
BROWSER_READY := $(VENV)/.browser-ready
CONSTRAINTS := constraints.txt
# Every layer is exact, the conformance kit finds all mutants, and one model of each host.
QUICK := tests/test_testing.py tests/test_masks.py tests/test_linalg.py tests/hosts/test_layers.py \
	tests/layers/test_exactness.py tests/layers/test_contract.py \
	tests/attention_coupling/test_exactness.py tests/marflow/test_layers.py::test_layer_is_exact \
	tests/full_glow/test_layers.py tests/srflow/test_layers.py \
	tests/glow/test_exactness.py::test_log_det_at_every_position

.DEFAULT_GOAL := help
.PHONY: help demo ablation list-quick quick test tests recipes bench lint format docs browser clean

help:  ## Show what can be made.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[test]"
	touch $@

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[docs]"
	touch $@

$(RECIPES_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[recipes]"
	touch $@

$(BROWSER_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e ".[browser]"
	command -v chromium || $(BIN)/playwright install chromium
	touch $@

demo: $(READY)  ## Train Glows with and without attention on digits, and say which is best (4 minutes).
	$(BIN)/python examples/studies/digits.py $(ARGS)

ablation: $(READY)  ## Compare all attentions and controls (a day and a half; ARGS=--quick: minutes).
	$(BIN)/python examples/studies/ablate.py $(ARGS)

list-quick:  # For environments that are made in another way, as those of .github/workflows/ci.yml.
	@echo $(QUICK)

quick: $(READY)  ## The tests to run after every change (under a minute on two cores).
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q $(QUICK) $(ARGS)

# The checker of types has work for one core only.
test: $(READY)  ## Lint, types, all tests, the notebooks (6 minutes on two cores).
	$(MAKE) --no-print-directory --jobs=2 lint tests

# With byte code kept, since dozens of processes that tests start import the package.
tests: $(READY)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal \
		--nbmake examples/*.ipynb tests --ignore=tests/recipes $(ARGS)

recipes: $(RECIPES_READY)  ## Run the programs of docs/recipes with the tools they are for (2 minutes).
	$(BIN)/python -m pytest -n 2 tests/recipes $(ARGS)

bench: $(READY)  ## Time the layers, and compare them (half an hour; ARGS="-k glow": a part).
	mkdir -p outputs/benchmarks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/benchmarks -o python_files='bench_*.py' -q -s \
		--benchmark-only --benchmark-quiet --benchmark-json outputs/benchmarks/run.json $(ARGS)
	$(BIN)/python -m tests.benchmarks.report outputs/benchmarks/run.json

lint: $(READY)  ## Style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Rewrite the sources in the project's style.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(DOCS_READY)  ## Build the documentation into site/.
	$(BIN)/mkdocs build --strict

browser: docs $(BROWSER_READY)  ## Look at every page of the site in a browser (3 minutes).
	$(BIN)/python -m pytest tests/site -o python_files='browse_*.py' -q $(ARGS)

clean:  ## Remove the environment and everything that was built.
	rm -rf $(VENV) site outputs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
