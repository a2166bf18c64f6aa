# Two commands do everything: `make train` and `make test`. Both make and reuse .venv from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: setup train test test-slow lint bench clean

setup: $(VENV)/.installed  ## make .venv and install vlmft with everything the tests need

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

train: setup  ## the embedded default: a tiny model learns to name colours, in about a minute
	$(BIN)/python -m vlmft.train

test: setup lint  ## lint, types and the suite; offline, at most 12 minutes on 2 cores
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-slow: setup  ## the end-to-end proofs that take minutes
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) -m slow --timeout 1200

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup  ## every figure the README quotes; writes benchmarks/results/
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/loop.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/head.py
	$(BIN)/python benchmarks/layer.py
	$(BIN)/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/recipes.py
	$(BIN)/python benchmarks/dpo.py
	$(BIN)/python benchmarks/families.py
	$(BIN)/python benchmarks/images.py
	$(BIN)/python benchmarks/video.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/million.py
	$(BIN)/python benchmarks/validate.py
	$(BIN)/python benchmarks/waste.py
	$(BIN)/python benchmarks/packs.py
	$(BIN)/python benchmarks/exact.py
	$(BIN)/python benchmarks/soak.py
	$(BIN)/python benchmarks/grpo.py

clean:
	rm -rf $(VENV) build dist runs
