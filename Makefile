# Two commands: `make run` (the whole path on this machine) and `make test` (lint, types, all tests).
# Each sets up what it needs; a second call starts in seconds.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3.11)
CONFIG ?= configs/local.yaml
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
KERNELS := $(VENV)/.kernels
# With half-precision arithmetic (AVX512-FP16, Intel since Sapphire Rapids) llama.cpp's attention takes heads of 64 number
# by number: kept from the compiler, where it knows the flag.
NO_FP16 := $(shell $(CXX) -Werror -mno-avx512fp16 -E -x c++ /dev/null >/dev/null 2>&1 && echo -mno-avx512fp16)
LLAMA_CXXFLAGS ?= -fno-tree-dse -fno-dse $(NO_FP16)
LLAMA_CMAKE_ARGS ?= -DLLAVA_BUILD=OFF '-DCMAKE_PROJECT_INCLUDE=$(CURDIR)/configs/llama_cpp.cmake'
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test check setup lint types docs unit integration faults e2e long clean
.DELETE_ON_ERROR:

run: setup
	$(BIN)/python -m ray_jobs.pipeline $(CONFIG)

test: check unit integration faults e2e

check: lint types docs

setup: $(READY) $(KERNELS)

# llama-cpp-python and deepspeed build from source. The first is built for this very machine, so never taken
# from pip's cache, and with the compiler flag that keeps GCC from dropping the stores which set up the AMX
# tiles of newer Intel CPUs (without it the first matrix product crashes); without the parts that read pictures and
# that make command-line programs, which nothing here uses and which take a while to compile. The second needs
# torch to be there.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q -c constraints.txt setuptools wheel ninja packaging torch
	CFLAGS="$(NO_FP16) $$CFLAGS" CXXFLAGS="$(LLAMA_CXXFLAGS)" CMAKE_ARGS="$(LLAMA_CMAKE_ARGS) $$CMAKE_ARGS" $(BIN)/pip install -q -c constraints.txt --no-cache-dir llama-cpp-python
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation deepspeed
	$(BIN)/pip install -q -c constraints.txt -e ".[local,openvino,tracking,wandb,dev]"
	touch $(READY)

# Our kernels for llama.cpp, where the system has a use for them; what keeps them from being built is said.
$(KERNELS): $(READY) $(wildcard serving/engine/llamacpp/kernels/*)
	-$(BIN)/python -m serving.engine.llamacpp.kernels
	touch $(KERNELS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# Links and anchors between the pages are checked; the site is in build/site.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q -f configs/mkdocs.yml

unit: setup
	$(BIN)/pytest tests/unit -n 2

integration: setup
	$(BIN)/pytest tests/integration -m "not long"

# Pipelines that are killed, with stubs in place of models.
faults: setup
	$(BIN)/pytest tests/chaos -m "not long"

# What takes longest, or is one of several alike, and is not a part of `make test`.
long: setup
	$(BIN)/pytest tests/integration tests/chaos tests/e2e -m long

e2e: setup
	$(BIN)/pytest tests/e2e -m "not long"

clean:
	rm -rf $(VENV) runs registry
