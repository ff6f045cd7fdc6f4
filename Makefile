# make demo, make test: each alone on a fresh machine with Python >= 3.11 and pip (uv is used if present).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test test-all bench lint types check docs clean

help:
	@echo "make demo      set up, train on digits with 40 % wrong labels, report which"
	@echo "make test      set up, run the fast tests"
	@echo "make test-all  set up, run all tests (slow ones too)"
	@echo "make bench     set up, measure on the CPU, in short: results/cost/*.csv (less than 10 minutes)"
	@echo "make lint      ruff"
	@echo "make types     mypy"
	@echo "make check     lint, types, tests"
	@echo "make docs      set up, build the pages and the reference in build/site, check their links"

setup: $(READY)

# tested versions: constraints.txt
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, set PYTHON=…")'
	@if command -v uv >/dev/null 2>&1; then \
		echo "setting up $(VENV) with uv"; \
		test -x $(BIN)/python || uv venv -q --python $(PYTHON) $(VENV); \
		uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev,dev-examples,docs]'; \
	else \
		echo "setting up $(VENV) with pip; torch is large, this takes some minutes"; \
		test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV); \
		$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,dev-examples,docs]'; \
	fi
	@touch $@

demo: setup
	rm -rf runs/demo
	$(BIN)/python -m noisybsd.train recipe=digits_sym40 run.dir=runs/demo tracking.wandb=disabled
	$(BIN)/python -m noisybsd.report run=runs/demo

test: setup
	$(BIN)/python -m pytest -q -n 2 -m "not slow and not gpu"

test-all: setup
	$(BIN)/python -m pytest -q -n 2

# Each script's docstring says what it measures, and --help its longer forms. Written to results/ only when all is
# done: a file changed there would be a changed commit to the next script.
BENCH := build/bench
bench: export OMP_NUM_THREADS = 1
bench: setup
	$(BIN)/python benchmarks/step.py --width 8 --methods ce,bsd_plus --out $(BENCH)/step.csv
	$(BIN)/python benchmarks/augment.py --rounds 100 --out $(BENCH)/augment.csv
	$(BIN)/python benchmarks/scale.py --out $(BENCH)/scale.csv
	$(BIN)/python benchmarks/report.py scale --out $(BENCH)/report_scale.csv
	$(BIN)/python benchmarks/loader.py --rounds 3 --images 400 --steps 4 --demand 400 --out $(BENCH)/loader.csv
	$(BIN)/python benchmarks/predict.py --rounds 3 --out $(BENCH)/predict.csv
	$(BIN)/python benchmarks/passes.py --out $(BENCH)/passes.csv
	cp $(BENCH)/*.csv results/cost/
	$(BIN)/python benchmarks/tables.py docs/performance.md docs/scaling.md

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

check: lint types test

# Links lead from docs/ to its neighbours, so all are copied side by side.
docs: setup
	rm -rf build/docs build/site
	mkdir -p build/docs/benchmarks build/docs/noisybsd/compare
	cp -r README.md CHANGELOG.md docs results examples build/docs/
	cp -r benchmarks/gpu_day build/docs/benchmarks/
	cp noisybsd/compare/published.csv build/docs/noisybsd/compare/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
