# make quickstart    plain OPD and Prune-OPD side by side on this machine, no GPU needed
# make test          unit tests, then end-to-end tests with the real trainer
# make test-all      also the tests that are slow and rarely break
# make test-pins     unit tests with the versions that a GPU installation gets (10 GB, no GPU needed)
# make soak          500 steps while memory, files and queues are watched; the same while teachers are killed; half an hour or more
# make lint          ruff and mypy
# make licences      licences of all that is installed; fails on one that asks more than Apache-2.0 does
# make update        newest versions for the CPU environment, and what changed
# ENGINE=sglang make ...       SGLang in place of vLLM, in an environment of its own
# PYTHON=python3.12 make ...   chooses the interpreter (3.10 to 3.12)
# UNIT=tests/recipe make test-unit   a part of the unit tests; E2E=tests/e2e/test_url.py make test-e2e

PYTHON ?= python3
ENGINE ?= vllm
ENGINES := vllm sglang
ifeq ($(filter $(ENGINE),$(ENGINES)),)
$(error ENGINE is $(ENGINE), allowed: $(ENGINES))
endif
VENV ?= $(if $(filter vllm,$(ENGINE)),.venv,.venv-$(ENGINE))
BIN := $(VENV)/bin
UNIT ?= tests examples/extend
FAST := and not slow
E2E ?= tests/e2e
RUN ?= runs/quickstart$(if $(filter vllm,$(ENGINE)),,-$(ENGINE))
CPU := verl_ext/cpu
INSTALL := PYTHON=$(PYTHON) bash $(CPU)/install.sh

.PHONY: install quickstart test test-unit test-e2e test-all test-pins soak lint licences update clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml setup.py $(wildcard $(CPU)/install.sh $(CPU)/requirements*.txt $(CPU)/*/*.toml $(CPU)/sglang/*.py $(CPU)/sglang/*/*.py)
	$(INSTALL) $(ENGINE) $(VENV)
	touch $@

.venv-pins/installed: pyproject.toml setup.py $(CPU)/install.sh $(CPU)/requirements.txt
	$(INSTALL) pins .venv-pins
	touch $@

quickstart: install
	$(BIN)/python examples/quickstart/run.py --engine $(ENGINE) --out $(RUN)

test: test-unit test-e2e

# A test takes one core: two side by side, each with one thread.
test-unit: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not e2e $(FAST)" -n 2 --dist loadfile $(UNIT)

test-e2e: install
	$(BIN)/python -m pytest -m "e2e $(FAST)" -v --durations=25 $(E2E)

test-all: FAST =
test-all: test-unit
	$(BIN)/python -m pytest -m e2e -v --durations=25 $(E2E)

# Without what asks neither torch nor transformers, and the installation, which test-unit tests.
test-pins: .venv-pins/installed
	OMP_NUM_THREADS=1 .venv-pins/bin/python -m pytest -m "not e2e" -n 2 --dist loadfile $(UNIT) \
		--ignore=tests/recipe/grading --ignore=tests/examples --ignore=tests/test_install.py

soak: install
	$(BIN)/python benchmarks/soak.py --out runs/soak
	$(BIN)/python benchmarks/soak.py --out runs/soak_killed --kill-every 50

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# pycountry is LGPL: vLLM imports it, unchanged.
licences: install
	$(BIN)/uv tool run --quiet pip-licenses@5.5.0 --python $(BIN)/python --from=mixed --order=license \
		--partial-match --fail-on="GPL;General Public" --ignore-packages pycountry

update: install
	$(BIN)/python $(CPU)/update.py

# Runs stay: nobody can make them again in a minute.
clean:
	rm -rf .venv .venv-* $(VENV) build *.egg-info $(CPU)/*/build $(CPU)/*/*.egg-info
