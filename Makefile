# make quickstart    the paper's method on this machine, no GPU needed
# make test          unit tests, then end-to-end tests with the real trainer
# make lint          ruff and mypy
# ENGINE=sglang make ...       SGLang in place of vLLM, in an environment of its own
# PYTHON=python3.12 make ...   chooses the interpreter (3.10 to 3.12)
# UNIT=tests/recipe make test-unit   a part of the unit tests

PYTHON ?= python3
ENGINE ?= vllm
ENGINES := vllm sglang
ifeq ($(filter $(ENGINE),$(ENGINES)),)
$(error ENGINE is $(ENGINE), allowed: $(ENGINES))
endif
VENV ?= $(if $(filter vllm,$(ENGINE)),.venv,.venv-$(ENGINE))
BIN := $(VENV)/bin
UNIT ?= tests
RUN ?= runs/quickstart$(if $(filter vllm,$(ENGINE)),,-$(ENGINE))
CPU := verl_ext/cpu
PIP := $(BIN)/python -m pip install --quiet --no-deps

.PHONY: install quickstart test test-unit test-e2e lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.py $(wildcard $(CPU)/requirements*.txt $(CPU)/*/*.toml $(CPU)/sglang/*.py $(CPU)/sglang/*/*.py)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 12) else "Python 3.10 to 3.12 is needed, $(PYTHON) is %d.%d; choose one with PYTHON=..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r $(CPU)/requirements-$(ENGINE).txt
	$(PIP) --no-build-isolation --editable .
	$(MAKE) --no-print-directory for-$(ENGINE)
	@$(BIN)/python -c 'import sys, torch; sys.exit("torch is built for CUDA " + torch.version.cuda + ", but the engines here need the CPU build: point pip to the CPU wheels of PyTorch (PIP_EXTRA_INDEX_URL), then make clean install" if torch.version.cuda else None)'
	touch $@

.PHONY: for-vllm for-sglang
for-vllm:
	$(PIP) --no-build-isolation ./$(CPU)/vllm_alias

# The .pth file has every process of the environment load it, SGLang's own too.
for-sglang:
	$(PIP) --no-build-isolation ./$(CPU)/sglang
	$(BIN)/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "sglang_on_cpu.pth").write_text("import sglang_on_cpu\n")'

quickstart: install
	$(BIN)/python examples/quickstart/run.py --engine $(ENGINE) --out $(RUN)

test: test-unit test-e2e

test-unit: install
	$(BIN)/python -m pytest -m "not e2e" $(UNIT)

test-e2e: install
	$(BIN)/python -m pytest -m e2e -v

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .venv-* $(VENV) runs outputs build *.egg-info $(CPU)/*/build $(CPU)/*/*.egg-info
