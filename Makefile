# Everything runs in .venv, made on first use from the exact set that CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# quantization libraries beside bitsandbytes: the extras that run on a CPU
BACKENDS := $(VENV)/.installed-backends

# The tests of a selection: PROCESSES at a time, each with one thread, and then those that want the machine to
# themselves. Every selection has some of both, so that none found (pytest's status 5) is an error too.
PROCESSES ?= 2
# Where CI is set, Hypothesis tries the same examples each time: what lands does not depend on luck, what is tried
# before it does. Not so for the fuzzers among the large tests, which try a thousand and more.
EXAMPLES := $(if $(CI),--hypothesis-profile=ci)
define tests
	status=0; \
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -n $(PROCESSES) --dist loadgroup --no-loadscope-reorder --benchmark-disable --durations 15 $(2) \
	  -m "$(1) and not alone" || status=$$?; \
	$(BIN)/pytest tests --durations 5 $(2) -m "$(1) and alone" || status=$$?; \
	exit $$status
endef

# what the browser tests take from npm: axe-core, which looks at accessibility
BROWSER := tests/browser/node_modules/.package-lock.json

.PHONY: bench bench-backends backends browser test test-browser test-fast test-large lint sweep clean

bench: $(INSTALLED)
	$(BIN)/pytest benchmarks

# every recipe that runs on a CPU, and one table of them all
bench-backends: $(BACKENDS)
	$(BIN)/pytest benchmarks --strict --models tiny_gemma3 --tokens 16256 -k 'not overhead' --quantizations \
	  reference,int8,nf4,fp4,torchao_int8,quanto_int8,hqq_int4,hqq_int3,rtn_int8,rtn_int7,rtn_int6,rtn_int5,rtn_int4,rtn_int3; \
	  status=$$?; $(BIN)/qsae-bench compare && exit $$status

backends: $(BACKENDS)

browser: $(BROWSER)

test: $(BACKENDS)
	$(call tests,not large,$(EXAMPLES))

test-fast: $(BACKENDS)
	$(call tests,not slow and not large)

# models of real depth and width, through a local hub and with random weights; hubs that fail; the rest that takes minutes
test-large: $(BACKENDS)
	$(call tests,large)

# the report in Chromium, which has to be there; screenshots are kept in build/screenshots
test-browser: $(BACKENDS) $(BROWSER)
	QSAE_BROWSER=required $(BIN)/pytest tests/browser

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# docs/sweep.md: the control at every bit-width
sweep: $(INSTALLED)
	$(BIN)/pytest benchmarks --models tiny_gemma3 -k 'perplexity or fvu or divergence or features' \
	  --quantizations reference,rtn_int8,rtn_int7,rtn_int6,rtn_int5,rtn_int4,rtn_int3

$(BROWSER): tests/browser/package-lock.json
	npm ci --prefix tests/browser --ignore-scripts --no-audit --no-fund

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,postgres]'
	touch $@

$(BACKENDS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,backends,postgres]'
	touch $@

clean:
	rm -rf $(VENV) .qsae .benchmarks
