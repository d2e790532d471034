# make demo     the whole path on a learned policy, ends with runs/demo/report.html
# make test     lint-free quick tests; make test-all adds the slow ones and the PyTorch side

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TEST_WORKERS ?= 2
# A file stays with one worker, so that fixtures and compiled programs are made once.
PYTEST := $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

.PHONY: demo test test-all test-openvla lint format bench libero clean

demo: $(VENV)/.installed
	$(BIN)/mistjax demo

test: $(VENV)/.installed-dev
	$(PYTEST)

test-all: $(VENV)/.installed-dev $(VENV)/.installed-openvla
	$(PYTEST) -m "" --timeout 1800

test-openvla: $(VENV)/.installed-dev $(VENV)/.installed-openvla
	$(PYTEST) -m "" --timeout 1800 tests/interop

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	$(BIN)/python -m experiments.bench

# LIBERO's declared dependencies are a training stack that its environments do not use. Pictures also
# need OpenGL, and scenes need assets: `mistjax doctor` says what is missing.
libero: $(VENV)/.installed
	$(INSTALL) -e '.[libero]'
	$(INSTALL) --no-deps hf-libero robosuite bddl
	$(BIN)/python -m mistjax.envs.libero.installation

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[dev]'
	touch $@

$(VENV)/.installed-openvla: $(VENV)/.installed
	$(INSTALL) -e '.[openvla]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
