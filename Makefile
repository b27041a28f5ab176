# Everything runs in a virtual environment that `make install` makes. A machine needs Python 3.11+, git and make.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := PATH="$(abspath $(BIN)):$$PATH"
PYTEST := $(RUN) OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal

.PHONY: install demo test test-slow test-numeric coverage format lint docs wheel bench fuzz chaos clean
.DEFAULT_GOAL := help

.PHONY: help
help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

install: $(STAMP)  ## make .venv with everything

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

.PHONY: plots
plots: install  ## the curves and the table of the demo as charts of DVC, in a page that needs no network
	@mkdir -p outputs
	$(RUN) python .ci/offline_plots.py outputs/plots-template.html
	$(RUN) dvc plots show --html-template outputs/plots-template.html --out outputs/plots

.PHONY: experiments
experiments: install  ## experiments with the params in which they differ, and one figure of each network
	$(RUN) dvc exp show --only-changed --drop '^(pipelines|genie_cli|outputs)/'

.PHONY: browser
browser: install  ## a Chromium for the tests of pages: the system's, else Debian's, else playwright's own
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { apt-get update -qq && apt-get install -y -qq chromium; } || $(BIN)/python -m playwright install chromium

demo: install  ## the whole pipeline on the embedded digits network
	$(RUN) dvc repro
	@cat outputs/report/table.md
	@echo
	@echo "The page on all runs: outputs/report.html"
	@echo "The exported file: outputs/exported/genie-m-w4a4.onnx"
	@$(RUN) python -m genie_cli inspect outputs/exported/genie-m-w4a4.onnx.export.json | grep -E '^(size|agreement) '

test: install  ## the tests, but for those that take long
	$(PYTEST) -m "not slow"

test-slow: install  ## the tests that take long
	$(PYTEST) -m slow

test-numeric: install  ## the tests of figures, which have to pass with every kind of kernels and every torch
	$(PYTEST) -m "numeric and not slow"

coverage: install  ## all tests, measured; floors for the share of branches that they take
	$(PYTEST) --cov --cov-branch --cov-report=
	$(RUN) python .ci/branches.py 95 'genie_cli/artifacts/*' 'genie_cli/work/*' 'genie_cli/runtime/*' 'genie_cli/config/*'
	$(RUN) python .ci/branches.py 90 'genie_cli/synthesis/*' 'genie_cli/quantization/*'

format: install  ## fix what ruff can fix, and format
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

lint: install  ## ruff, mypy, import contracts
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) lint-imports

docs: install  ## the documentation site in build/docs; a warning is an error
	$(RUN) python -m sphinx --fail-on-warning --keep-going --fresh-env --jobs auto docs build/docs

wheel:  ## build the distributions, and try the wheel without extras in a virtual environment of its own
	PYTHON=$(PYTHON) .ci/wheel

bench: install  ## speed of synthesis and quantization on this machine, beside the baseline's
	$(RUN) python benchmarks/synthesize.py --baseline
	$(RUN) python benchmarks/quantize.py --baseline --budget 1000

fuzz: install  ## load ten thousand mutated artifacts, and mutated params files and options
	$(RUN) python benchmarks/fuzz.py

chaos: install  ## kill, limit and corrupt runs; each must end in the same bytes
	$(RUN) python benchmarks/chaos.py

clean:  ## remove the virtual environment and the pipeline's outputs
	rm -rf $(VENV) outputs dvc.lock
