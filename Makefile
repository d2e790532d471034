# make demo     the whole path on a learned policy, ends with runs/demo/report.html
# make test     lint-free quick tests; make test-all adds the slow ones and the PyTorch side
# make docs     the site, in site/; fails on a page or link that is not there
# make test-lerobot   LeRobot's policies, in an environment of their own
# make test-lerobot-pi   LeRobot's own pi0 beside ours: Python 3.12, and 5 GB of packages, once
# make test-serve    the server with openpi's own client, which has an environment of its own
# make test-openpi   what a policy needs, in an environment with openpi's own pins

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TEST_WORKERS ?= 2
LEROBOT_VENV ?= .venv-lerobot
LEROBOT_PI_VENV ?= .venv-lerobot-pi
CLIENT_VENV ?= .venv-client
# A file stays with one worker, so that fixtures and compiled programs are made once. Bytecode is kept
# whatever the shell says: tests and annotations are rewritten as they are imported, which takes longer.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

OPENPI_VENV ?= .venv-openpi
OPENPI_BIN := $(OPENPI_VENV)/bin
OPENPI_PYTHON ?= $(firstword $(shell command -v python3.11 python3.12))
OPENPI_INSTALL := $(OPENPI_BIN)/python -m pip install --quiet --disable-pip-version-check \
	-c constraints-openpi.txt
OPENPI_TESTS ?= $(addprefix tests/,hooks models policies detect attribute steer recover \
	interop/test_openpi.py interop/test_openpi_itself.py test_compilation.py)
OPENPI_PYTEST := PYTHONDONTWRITEBYTECODE= $(OPENPI_BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --timeout 900

.PHONY: demo docs notebooks test test-all test-openvla test-openpi test-lerobot test-lerobot-pi \
	test-serve lint format bench libero clean

demo: $(VENV)/.installed
	$(BIN)/mistjax demo

test: $(VENV)/.installed-dev
	$(PYTEST)

test-all: $(VENV)/.installed-dev $(VENV)/.installed-openvla
	$(PYTEST) -m "" --timeout 1800 --nbmake tests notebooks

# Runs the notebooks and writes their outputs into them.
notebooks: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --nbmake --overwrite notebooks

test-openvla: $(VENV)/.installed-dev $(VENV)/.installed-openvla
	$(PYTEST) -m "" --timeout 1800 tests/interop

test-lerobot: $(LEROBOT_VENV)/.installed
	$(LEROBOT_VENV)/bin/python -m pytest -m "" tests/interop/lerobot

test-lerobot-pi: $(LEROBOT_PI_VENV)/.installed
	$(LEROBOT_PI_VENV)/bin/python -m pytest tests/interop/lerobot_pi

# openpi-client wants NumPy below 2, and does not declare that it needs typing_extensions.
test-serve: $(VENV)/.installed-dev $(CLIENT_VENV)/.installed
	MISTJAX_CLIENT=$(abspath $(CLIENT_VENV))/bin/python $(BIN)/python -m pytest -m "" tests/serve

# With OPENPI_SRC, a checkout of openpi, also its own models and policies beside ours.
test-openpi: $(OPENPI_VENV)/.installed
	$(OPENPI_PYTEST) $(OPENPI_TESTS)
ifdef OPENPI_SRC
	$(OPENPI_INSTALL) augmax dm-tree einops equinox ml-collections numpydantic tqdm-loggable \
		torch transformers websockets
	$(OPENPI_PYTEST) -m "" tests/interop/test_openpi_itself.py
endif

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev
	$(BIN)/python -m experiments.bench

# LIBERO's declared dependencies are a training stack that its environments do not use. Pictures also
# need OpenGL: `mistjax doctor libero gl` says what is missing.
libero: $(VENV)/.installed
	$(INSTALL) -e '.[libero,download]'
	$(INSTALL) --no-deps hf-libero robosuite bddl
	$(BIN)/python -m mistjax.envs.libero.installation

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(OPENPI_VENV)/.installed: pyproject.toml constraints-openpi.txt
	test -x $(OPENPI_BIN)/python || $(OPENPI_PYTHON) -m venv $(OPENPI_VENV)
	$(OPENPI_INSTALL) -e '.[download]' beartype chex hypothesis pytest pytest-timeout pytest-xdist
	touch $@

$(CLIENT_VENV)/.installed:
	test -x $(CLIENT_VENV)/bin/python || $(PYTHON) -m venv $(CLIENT_VENV)
	$(CLIENT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		openpi-client==0.1.2 'numpy<2' typing_extensions
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(INSTALL) -e '.[docs]'
	touch $@

$(VENV)/.installed-openvla: $(VENV)/.installed
	$(INSTALL) -e '.[openvla]'
	touch $@

# LeRobot declares an older PyTorch than it runs on, and torchvision's index has CUDA builds alone: both
# go in without their dependencies, those of them that it imports by name.
LEROBOT_NEEDS := torch transformers huggingface-hub draccus einops datasets accelerate gymnasium \
	jsonlines deepdiff termcolor packaging av diffusers num2words pillow imageio \
	opencv-python-headless pyserial safetensors pytest pytest-timeout beartype

$(LEROBOT_VENV)/.installed: pyproject.toml constraints-lerobot.txt
	test -x $(LEROBOT_VENV)/bin/python || python3.11 -m venv $(LEROBOT_VENV)
	$(LEROBOT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-lerobot.txt -e . $(LEROBOT_NEEDS)
	$(LEROBOT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-lerobot.txt --no-deps lerobot torchvision
	touch $@

# LeRobot 0.4.4 builds no pi0 without a patched transformers; later releases need Python 3.12.
$(LEROBOT_PI_VENV)/.installed: pyproject.toml constraints-lerobot-pi.txt
	test -x $(LEROBOT_PI_VENV)/bin/python || python3.12 -m venv $(LEROBOT_PI_VENV)
	$(LEROBOT_PI_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-lerobot-pi.txt -e . lerobot transformers pytest pytest-timeout beartype hypothesis
	touch $@

clean:
	rm -rf $(VENV) $(OPENPI_VENV) $(LEROBOT_VENV) $(LEROBOT_PI_VENV) $(CLIENT_VENV) .pytest_cache .ruff_cache site
