# `make demo` and `make test` are the only commands needed after a clone: both build .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow study study-rates lint docs clean

demo: $(STAMP)
	$(BIN)/distill study study/demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

STUDIES := bridge ibotpp mask_ratio ema captions cumulative bigger_is_worse
KEPT := docs/results/study

# About 15 hours on 2 cores with AVX-512 bf16, 25 without (estimates); goes on where it was stopped.
# What is kept in $(KEPT) is not run again.
study: $(STAMP)
	for name in $(STUDIES); do $(BIN)/distill study study/$$name --keep $(KEPT) || exit; done
	$(BIN)/distill study $(KEPT) --report --claims README.md

# Every arm briefly at half, the same and twice its learning rate (seed 0), into the same report: another 12 hours.
study-rates: $(STAMP)
	for name in $(STUDIES); do $(BIN)/distill study study/$$name --lr-check --keep $(KEPT) || exit; done
	$(BIN)/distill study $(KEPT) --report --claims README.md

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m distill.config.docs > docs/config.md

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "EveryPatch needs Python 3.10 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
