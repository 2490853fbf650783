# Everything from a fresh clone: `make demo` shows it, `make test` checks it.
# Needs make and Python 3.11 or later; another Python: make test PYTHON=/path/to/python3.13

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
PYTEST := $(BIN)/python -m pytest
OUT := demo-output

section = printf '\n\033[1m== %s\033[0m\n' $(1)

.PHONY: help demo test lint unit browser notebooks docs bench bench-check bench-peers soak test-faults test-versions system clean

help:
	@echo "make demo         run notebooks/01_first_pipeline.ipynb on the local model (no key, no cost)"
	@echo "make test         everything that CI checks: lint, documentation, tests, notebooks"
	@echo "make lint         ruff, mypy --strict, import layers"
	@echo "make unit         the tests, with coverage"
	@echo "make browser      the tests in a real JupyterLab"
	@echo "make docs         build the documentation into docs/_build/html"
	@echo "make bench        measure against the limits of docs/reference/benchmarks.md"
	@echo "make bench-check  the same, and fail where a ratio is worse than promised"
	@echo "make bench-peers  other libraries against the same limits, in environments of their own"
	@echo "make soak         run a pipeline 200 times in a kernel, and fail where something has grown"
	@echo "make test-faults  the fault tests with all repetitions"
	@echo "make test-versions  the tests that depend on versions, with the lowest, Colab's, SageMaker's and the newest"
	@echo "make clean        remove what these targets made, the virtual environment too"

# -- set-up ------------------------------------------------------------------------------------

$(BIN)/python:
	@python="$(PYTHON)"; \
	for one in $(if $(PYTHON),,python3 python3.14 python3.13 python3.12 python3.11); do \
	  if "$$one" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$one"; break; fi; \
	done; \
	if [ -z "$$python" ]; then echo "tagent-nb needs Python 3.11 or later; none was found. Install one, or say PYTHON=/path/to/python." >&2; exit 1; fi; \
	echo "Making $(VENV) with $$python"; \
	"$$python" -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	@$(call section,"Installing tagent-nb and what the demo needs")
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@$(call section,"Installing tagent-nb and the tools of development")
	@$(PIP) --editable '.[dev]'
	@touch $@

# Older kernels for tests/notebook/test_kernel.py, each by itself in a folder that a kernel gets first on its path:
# what they depend on is what the newest depends on too.
KERNELS := 6.31 7.3
$(VENV)/.kernels: Makefile | $(VENV)/.dev
	@for one in $(KERNELS); do $(PIP) --no-deps --upgrade --target $(VENV)/kernels/$$one "ipykernel==$$one.*"; done
	@touch $@

# The model: 130 MB, asked for by name here, never by the library itself.
$(VENV)/.model: | $(BIN)/python
	@$(BIN)/tagent-nb model install
	@touch $@

# Programs of the system that some tests use. Installed where we may, named where we may not.
system:
	@missing=(); \
	command -v redis-server >/dev/null || missing+=(redis-server); \
	command -v chromium >/dev/null || command -v chromium-browser >/dev/null || missing+=(chromium); \
	[ -e /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf ] || [ "$$(uname)" != Linux ] || missing+=(fonts-dejavu-core); \
	command -v strace >/dev/null || [ "$$(uname)" != Linux ] || missing+=(strace); \
	[ $${#missing[@]} -gt 0 ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing $${missing[*]}"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
	else \
	  echo "Not installed: $${missing[*]}. Tests that need them are skipped; install them with your package manager to run these too."; \
	fi

# -- demo --------------------------------------------------------------------------------------

demo: $(VENV)/.demo $(VENV)/.model
	@$(call section,"Running notebooks/01_first_pipeline.ipynb on the local model")
	@$(BIN)/python notebooks/demo.py $(OUT)

# -- checks ------------------------------------------------------------------------------------

test: lint docs unit browser notebooks

# Many tests wait for processes of their own: more workers than cores keep the cores busy.
WORKERS ?= 4

lint: $(VENV)/.dev
	@$(call section,"Style: ruff")
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(call section,"Types: mypy --strict")
	@$(BIN)/mypy
	@$(call section,"Packages: import-linter")
	@$(BIN)/lint-imports

unit: $(VENV)/.dev $(VENV)/.model $(VENV)/.kernels system
	@$(call section,"Tests: pytest with line and branch coverage")
	@$(BIN)/coverage erase
	@$(PYTEST) -q -n $(WORKERS) --dist worksteal -p no:nbval --cov --cov-report=term --ignore=tests/browser

# A process of its own, without coverage: the driver of the browser uses greenlets, and on CPython 3.11 the
# clean-up of their threads, a pending call, can stand still for ever where functions are traced.
browser: $(VENV)/.dev system
	@$(call section,"Tests in a real JupyterLab: pytest with headless Chromium")
	@$(PYTEST) -q tests/browser

notebooks: $(VENV)/.dev $(VENV)/.model
	@$(call section,"Notebooks: nbval on a copy so that no earlier run answers")
	@rm -rf test-artifacts/notebooks && mkdir -p test-artifacts && cp -r notebooks test-artifacts/
	@$(PYTEST) -q --nbval --nbval-sanitize-with notebooks/sanitize.cfg test-artifacts/notebooks

docs: $(VENV)/.dev
	@$(call section,"Documentation: sphinx -W")
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# Options of these go into ARGS: make bench ARGS="--only chain".
ARGS ?=
bench: $(VENV)/.dev
	@$(BIN)/python -m tests.benchmarks $(ARGS)

bench-check: $(VENV)/.dev
	@$(BIN)/python -m tests.benchmarks --check $(ARGS)

bench-peers: $(VENV)/.dev
	@$(BIN)/python -m tests.benchmarks.peers $(ARGS)

soak: $(VENV)/.dev
	@$(BIN)/python -m tests.benchmarks.soak

test-faults: $(VENV)/.dev system
	@TAGENT_FAULTS=full $(PYTEST) -m faults -s -p no:cacheprovider --timeout=3600

# What depends on the versions of other packages, under each set of them: VERSIONS="colab lowest" chooses.
# No coverage. "browser" is the panel of Colab's versions with the classic widgets, in JupyterLab 3.
VERSIONS ?= lowest colab sagemaker newest browser
VERSION_TESTS := $(addprefix tests/,$(addsuffix .py, \
  $(addprefix display/test_,display) \
  $(addprefix engine/test_,executor run) \
  $(addprefix notebook/test_,approval_form cells completion kernel magics panel) \
  $(addprefix results/test_,frames) \
  $(addprefix serde/test_,arrow copies labels round_trip value) \
  $(addprefix storage/test_,file_backend memory_backend sqlite_backend)))
CLASSIC_TESTS := $(addprefix tests/browser/test_browser_,$(addsuffix .py,smoke panel controls approval))
PYTHONS_lowest := python3.11
PYTHONS_colab := python3.12 python3.13
PYTHONS_sagemaker := python3.12 python3.13
PYTHONS_newest := python3.14 python3.13 python3.12
PYTHONS_browser := $(PYTHONS_colab)

test-versions: $(addprefix version-,$(VERSIONS))

# The environment of a set in $$home: of its requirements and constraints, with its Python where that is here.
define version-environment
home=$(VENV)/versions/$(1); python="$(PYTHON)"; \
for one in $(if $(PYTHON),,$(PYTHONS_$(1))); do \
  if "$$one" -c '' 2>/dev/null; then python="$$one"; break; fi; \
done; \
if [ -z "$$python" ]; then python=python3; echo "None of $(PYTHONS_$(1)) is here: this is another Python."; fi; \
"$$python" --version; \
[ -e "$$home/bin/python" ] || "$$python" -m venv "$$home"; \
"$$home/bin/python" -m pip --disable-pip-version-check install -qq --editable . \
  --requirement tests/versions/$(2).txt $(if $(wildcard tests/versions/$(3).txt),--constraint tests/versions/$(3).txt)
endef

version-browser: $(VENV)/.dev system
	@$(call section,"Versions: the classic widgets in JupyterLab 3")
	@$(call version-environment,browser,browser,colab); \
	TAGENT_LAB_PYTHON="$$home/bin/python" $(PYTEST) -q -p no:cacheprovider $(CLASSIC_TESTS)

version-%:
	@$(call section,"Versions: $*")
	@$(call version-environment,$*,tests,$*); \
	"$$home/bin/python" -m pytest -q -n auto --maxprocesses 4 -p no:cacheprovider -W ignore::DeprecationWarning -W error:Binding:DeprecationWarning $(VERSION_TESTS)

clean:
	rm -rf $(VENV) .venv-peers $(OUT) docs/_build .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis test-artifacts
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
