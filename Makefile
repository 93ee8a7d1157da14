# Each target does its own set-up on a fresh machine with Python 3.11 or newer: virtual environment, install, run.

DEFAULT_MODELS := smollm2-135m-instruct qwen2.5-coder-0.5b-instruct
MODELS ?= $(DEFAULT_MODELS)
APPLICATION ?= examples/support-desk.toml
# The smallest margin within which this size can show "not worse" of equal models (docs/explanation/statistics.md).
MARGIN ?= 0.1
ATTACKS ?= direct crescendo@planted_secret,harmful_request
# "group_sequential" stops at half or three quarters of the behaviours if the answer is clear (docs/explanation/statistics.md).
STOPPING ?= fixed
ARGS ?=
TASK ?= examples/adapt/support.toml
LABELS ?= ../shared/data
# Benchmarks that need no data of one's own; corpus, head, judges, pretrain and train take a folder or a file.
BENCH ?= runner engine serve remote fuzz grand sequential pipeline
# Other sources of the catalogue's models, where the model hub cannot be reached; empty: the hub only.
export HEREDITY_MIRRORS ?= $(CURDIR)/examples/mirrors.toml

# Other models or another application are another study, and a study has a folder of its own.
empty :=
slug = $(subst /,_,$(subst :,_,$(subst $(empty) $(empty),+,$(strip $(1)))))
OUT ?= runs/$(basename $(notdir $(APPLICATION)))$(if $(subst $(DEFAULT_MODELS),,$(strip $(MODELS))),-$(call slug,$(MODELS)))$(if $(filter-out fixed,$(STOPPING)),-$(STOPPING))

# `make inheritance`: another teacher (FLAGSHIP=1.5b) or other word problems (DATA=gsm8k.jsonl) have another folder.
FLAGSHIP ?=
DATA ?=
LINEAGE ?= runs/inheritance$(if $(FLAGSHIP),-$(FLAGSHIP))$(if $(DATA),-$(call slug,$(basename $(notdir $(DATA)))))$(if $(findstring --quick,$(ARGS)),-quick)

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$p && break; done)
# Half of an install was compiling every module. Python compiles the ones it imports, and is told to keep that.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile $(if $(CI),--quiet)
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help study inheritance adapt pretrain test types read contracts limits test-fast prose shape bench proofs judges learned head docs reference clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo; echo '  Examples: make study MODELS="smollm2-135m-instruct qwen2.5-coder-1.5b-instruct"'
	@echo '            make study ARGS="--probes quick"'
	@echo '            make inheritance FLAGSHIP=1.5b'
	@echo '            make test ARGS="tests/stats -x -n 0"'
	@echo '            make bench BENCH=runner ARGS="--trials 20000 --rows 100000"'

study: $(VENV)/.torch ## pull real models, ask them the probes of the example application, write the report
	@$(BIN)/heredity study --application "$(APPLICATION)" $(foreach m,$(MODELS),--model "$(m)") \
	  $(foreach a,$(ATTACKS),--attack "$(a)") --margin "$(MARGIN)" --stopping "$(STOPPING)" --out "$(OUT)" --yes $(ARGS)

inheritance: $(VENV)/.torch ## grow children of real models, and measure what each kept of its safety
	@$(BIN)/heredity inherit examples/inheritance.toml --yes --out "$(LINEAGE)" \
	  $(if $(FLAGSHIP),--model "teacher=qwen2.5-coder-$(FLAGSHIP)-instruct") \
	  $(if $(DATA),--data "problems=$(DATA)") $(ARGS)

adapt: $(VENV)/.retrieval ## prompt, retrieval, adapters and fine-tuning side by side on one task
	@$(BIN)/heredity pull all-minilm-l6-v2  # the judge `learned` reads with it
	@$(BIN)/heredity adapt "$(TASK)" --yes $(ARGS)

pretrain: $(VENV)/.corpus ## a base from random weights, its children, and what they know and keep
	@$(BIN)/python examples/home_grown.py $(ARGS)

test: $(VENV)/.dev ## what CI runs: style, types, import contracts, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory --jobs=2 types $(if $(wildcard .pytest_cache),,read) contracts limits
	$(BIN)/pytest -m "not proof" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# Side by side, two at a time, the longest first.
types:
	$(BIN)/mypy

# The first time only: compiles what the tests load and the tests, which every worker would do by itself.
read:
	@$(BIN)/pytest --collect-only -q -m "not proof" $(ARGS) > /dev/null 2>&1 || true

contracts:
	$(BIN)/lint-imports

limits:
	$(BIN)/python tools/prose.py --counts
	$(BIN)/python tools/shape.py --limits --summary

test-fast: $(VENV)/.dev ## the inner loop, within a minute: tests without a model, a process or a sleep
	$(BIN)/pytest -m "not slow and not models and not proof" -n auto --maxprocesses 4 $(ARGS)

prose: $(VENV)/.made ## the English of documents, docstrings and help: sentences, numbers, lines, banned words
	@$(BIN)/python tools/prose.py $(ARGS)

shape: $(VENV)/.torch ## files that four runs enter, size, error codes, circles, names: limits and aims
	@$(BIN)/python tools/shape.py $(ARGS)

bench: $(VENV)/.dev ## the speed figures, as ratios in one run
	@for name in $(BENCH); do echo "== bench/$$name.py"; $(BIN)/python bench/$$name.py $(ARGS) || exit; done

proofs: $(VENV)/.dev ## the longer proofs: kill -9 of a real study, fuzzing with 10,000 inputs
	$(BIN)/pytest -m proof $(ARGS)

judges: $(VENV)/.dev ## measure the judges on the labelled sets again
	$(BIN)/python bench/judges.py $(ARGS)

learned: $(VENV)/.dev ## train the judge `learned` again (LABELS: the folders of its labelled sets; an hour or two)
	$(BIN)/heredity pull all-minilm-l6-v2
	$(BIN)/heredity judges train --data bench/learned.toml $(foreach d,$(LABELS),--root "$(d)") \
	  --out .learned $(ARGS)
	cp .learned/learned.json .learned/learned.safetensors src/heredity/redteam/judges

head: $(VENV)/.dev ## learn the head of rubric:qwen2.5-coder-1.5b-instruct:head again (LABELS, as above; an hour)
	$(BIN)/heredity pull qwen2.5-coder-1.5b-instruct
	$(BIN)/heredity judges train --data bench/learned.toml $(foreach d,$(LABELS),--root "$(d)") \
	  --head qwen2.5-coder-1.5b-instruct --out .head $(ARGS)
	cp .head/head.json .head/head.safetensors src/heredity/redteam/judges

docs: reference ## the documents as a site in build/site, every link checked
	$(BIN)/sphinx-build -W --keep-going -q -c docs -b html . build/site
	@echo "build/site/index.html"

reference: $(VENV)/.docs ## write the reference of commands and library, and the tree of the architecture page
	@$(BIN)/python tools/reference.py
	@$(BIN)/python tools/tree.py

clean: ## remove the environment that make made and the caches, but no study and no model
	rm -rf $(if $(wildcard $(VENV)/.by-make),$(VENV)) build/site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .grimp_cache

# A stamp is written last, so an install that was interrupted is done again; pyproject.toml newer: again too.
# `.by-make` marks an environment that make began. Another is a person's: completed, and never deleted.
$(VENV)/.made:
	@if test -e $(VENV)/.by-make; then rm -rf $(VENV); else rmdir $(VENV) 2> /dev/null || true; fi
	@if test -e $(VENV); then \
	  { $(BIN)/python -m pip --version || $(BIN)/python -m ensurepip; } > /dev/null 2>&1 || { \
	  echo "$(VENV) has no Python with pip. make did not make it, so it stays as it is: move it away, or use make VENV=.venv-make" >&2; exit 2; }; \
	else \
	  test -n "$(PYTHON)" || { \
	  echo "heredity needs Python 3.11 or newer, and none is here. Name one: make PYTHON=/path/to/python3" >&2; exit 2; }; \
	  mkdir $(VENV) || exit 2; touch $(VENV)/.by-make; "$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) could not make a virtual environment. On Debian: apt-get install python3-venv" >&2; exit 2; }; \
	fi
	@touch $@

$(VENV)/.torch: pyproject.toml $(VENV)/.made
	@echo "installing heredity and torch into $(VENV) (once; some minutes) ..."
	@$(PIP) -e '.[torch,serve]'
	@touch $@

$(VENV)/.corpus: $(VENV)/.torch
	@$(PIP) -e '.[torch,serve,corpus]'
	@touch $@

$(VENV)/.retrieval: pyproject.toml $(VENV)/.torch
	@$(PIP) -e '.[torch,serve,retrieval]'
	@touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.made
	@$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.made
	@echo "installing heredity, torch and the tools of development into $(VENV) (once; some minutes) ..."
	@$(PIP) -e '.[torch,dev]'
	@touch $@ $(VENV)/.torch $(VENV)/.corpus $(VENV)/.retrieval
