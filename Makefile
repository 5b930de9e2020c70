# Everything runs in .venv, made on first use from the exact set that CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: bench test test-fast test-large lint sweep clean

bench: $(INSTALLED)
	$(BIN)/pytest benchmarks

test: $(INSTALLED)
	$(BIN)/pytest tests -m "not large"

test-fast: $(INSTALLED)
	$(BIN)/pytest tests -m "not slow and not large"

# models of real depth and width, through a local hub and with random weights; hubs that fail
test-large: $(INSTALLED)
	$(BIN)/pytest tests -m large

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# docs/sweep.md: the control at every bit-width
sweep: $(INSTALLED)
	$(BIN)/pytest benchmarks --models tiny_gemma3 -k 'perplexity or fvu or divergence or features' \
	  --quantizations reference,rtn_int8,rtn_int7,rtn_int6,rtn_int5,rtn_int4,rtn_int3

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .qsae .benchmarks
