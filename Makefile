# Everything a newcomer types. `make demo` and `make test` work alone on a fresh machine with Python 3.11 or newer.
PYTHON ?= $(firstword $(foreach v,11 12 13,$(shell command -v python3.$(v))) python3.11)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test test-unit test-all check fmt bench audit

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON): install Python 3.11, or run make PYTHON=python3.12"; exit 1; }
	@echo "installing into $(VENV): about 3 GB, some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade pip
	@$(BIN)/python -m pip install -qq --constraint constraints.txt --editable ".[demo,heic,safety,gcs,onnx,tracking,dev]"
	@$(BIN)/python -c "from curation.torchvision_ops import main; main()"
	@touch $(STAMP)

demo: setup   ## the whole road on real drawings, at most ten minutes on two cores
	$(BIN)/cleanplate demo

test: setup   ## the unit tests, then those that start a Ray cluster
	$(BIN)/pytest -m "not ray and not slow and not gpu"
	$(BIN)/pytest -m "(ray or slow) and not gpu and not long" --timeout 600

test-unit: setup
	$(BIN)/pytest -m "not ray and not slow and not gpu"

test-all: setup
	$(BIN)/pytest --timeout 900

check: setup  ## format, lint, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: bench-curation bench-rights bench-duplicates bench-training bench-engine bench-clip

bench-%: setup  ## the last line is one JSON object {"ratios": {...}}
	$(BIN)/python -m tests.bench.$*

audit:        ## the pinned packages against known vulnerabilities; needs the network
	$(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install -qq pip-audit
	$(VENV)-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip
