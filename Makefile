# Everything runs in .venv, made on first use from the exact set that CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# quantization libraries beside bitsandbytes: the extras that run on a CPU
BACKENDS := $(VENV)/.installed-backends
# what the browser tests take from npm: axe-core, which looks at accessibility
BROWSER := tests/browser/node_modules/.package-lock.json

# Tests run in this many processes of one thread each, a file in one of them: what a module's fixture takes is taken
# once. Those marked `alone` run after them, one by one.
PROCESSES ?= 2
# Where CI is set, Hypothesis tries the same examples each time: what lands does not depend on luck, what is tried
# before it does.
EXAMPLES := $(if $(CI),--hypothesis-profile=ci)
# $(1) a folder of tests, $(2) an expression for -m, or nothing
define tests
	status=0; \
	OMP_NUM_THREADS=1 $(BIN)/pytest $(1) -n $(PROCESSES) --dist loadfile --no-loadscope-reorder --benchmark-disable \
	  --durations 15 $(EXAMPLES) -m "$(if $(2),$(2) and )not alone" || status=$$?; \
	alone=$$(grep -rl --include='*.py' 'mark\.alone' $(1)); \
	if [ -n "$$alone" ]; then \
	  $(BIN)/pytest $$alone --durations 5 $(EXAMPLES) -m "$(if $(2),$(2) and )alone" || [ $$? -eq 5 ] || status=1; \
	fi; \
	exit $$status
endef

.PHONY: bench bench-backends backends browser test test-browser test-fast test-integration test-nightly lint sweep clean

bench: $(INSTALLED)
	$(BIN)/pytest benchmarks

# every quantization that runs on a CPU, and one table of them all
bench-backends: $(BACKENDS)
	$(BIN)/pytest benchmarks --strict --models tiny_gemma3 --tokens 16256 --max-tokens 65024 -k 'not overhead' --quantizations \
	  reference,int8,nf4,fp4,torchao_int8,quanto_int8,hqq_int4,hqq_int3,rtn_int8,rtn_int7,rtn_int6,rtn_int5,rtn_int4,rtn_int3; \
	  status=$$?; $(BIN)/qsae-bench compare && exit $$status

backends: $(BACKENDS)

browser: $(BROWSER)

# each module by itself
test: $(BACKENDS)
	$(call tests,tests/unit)

test-fast: $(BACKENDS)
	$(call tests,tests/unit,not slow)

# whole runs, processes, workers, a local hub
test-integration: $(BACKENDS)
	$(call tests,tests/integration)

# what takes minutes: fuzzers, kills, training, models of real width, nights played through, timings in pairs
test-nightly: $(BACKENDS)
	$(call tests,tests/nightly)

# the report in Chromium, which has to be there; screenshots are kept in build/screenshots
test-browser: $(BACKENDS) $(BROWSER)
	QSAE_BROWSER=required $(BIN)/pytest tests/browser

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# docs/sweep.md: the control at every bit-width
sweep: $(INSTALLED)
	$(BIN)/pytest benchmarks --models tiny_gemma3 -k 'perplexity or fvu or divergence or features' \
	  --quantizations reference,rtn_int8,rtn_int7,rtn_int6,rtn_int5,rtn_int4,rtn_int3

$(BROWSER): tests/browser/package-lock.json
	npm ci --prefix tests/browser --ignore-scripts --no-audit --no-fund

# An up-to-date pip resolves these packages in half the time; compiling each module of each package takes as long
# again, and Python does it for what is imported.
define install
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[$(EXTRAS)]'
endef

$(INSTALLED): EXTRAS := dev,postgres
$(INSTALLED): pyproject.toml constraints.txt
	$(install)
	touch $@

$(BACKENDS): EXTRAS := dev,backends,postgres
$(BACKENDS): pyproject.toml constraints.txt
	$(install)
	touch $(INSTALLED) $@

clean:
	rm -rf $(VENV) .qsae .benchmarks
