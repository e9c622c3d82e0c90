# Thin targets; CI calls the same ones. `make demo` and `make test` set everything up by themselves.

# requirements/dev.txt pins for Python 3.11; a version manager may leave a python3.11 on PATH that does not run.
PYTHON ?= $(shell for name in python3.11 python3; do $$name -c "" 2>/dev/null && echo $$name && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
MAX_JOBS ?= 2
export MAX_JOBS
WORKERS ?= 2
ifneq ($(wildcard /usr/local/cuda/bin/nvcc),)
CUDA_HOME ?= /usr/local/cuda
export CUDA_HOME
endif

CPP := $(shell find cpp csrc_cuda tests/cuda_emulator -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
ARCHITECTURES := 8.0;9.0

.PHONY: demo install test check lint format bench cuda sanitize neon docs clean

demo: install
	$(BIN)/petkit bench adapters demo --output demo

install: $(VENV)/installed

# The extension is rebuilt when a native source changes; Python sources are used in place. The CUDA module takes
# minutes to compile and needs a GPU to run: `make cuda` builds it.
$(VENV)/installed: $(VENV)/requirements setup.py pyproject.toml $(CPP)
	PETKIT_CUDA=$${PETKIT_CUDA:-0} $(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/requirements: requirements/dev.txt requirements/demo.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements/dev.txt
	$(BIN)/pip install --quiet --no-deps --requirement requirements/demo.txt
	@touch $@

test: install
	@$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile $(PYTEST_ARGS)

check: lint
	@$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --cov --cov-report=term-missing:skip-covered $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/requirements
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: install
	$(BIN)/petkit bench ops

# Compiles and links every CUDA source; needs a toolkit, but no GPU. Fails, and does not skip, without one.
cuda: $(VENV)/requirements
	PETKIT_CPP=0 PETKIT_CUDA=1 TORCH_CUDA_ARCH_LIST="$(ARCHITECTURES)" $(BIN)/python setup.py --quiet build_ext --inplace

# The C++ core and its tests under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize:
	cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DPETKIT_SANITIZE=ON
	cmake --build build/sanitize --parallel $(MAX_JOBS)
	ctest --test-dir build/sanitize --output-on-failure

# The NEON kernels' tests, cross-compiled and run in an emulator. Debian's packages for it: g++-aarch64-linux-gnu
# libc6-dev-arm64-cross qemu-user.
neon:
	cmake -S . -B build/neon -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	  -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu"
	cmake --build build/neon --parallel $(MAX_JOBS)
	ctest --test-dir build/neon --output-on-failure

docs: install
	$(BIN)/python docs/generate.py

clean:
	rm -rf build dist *.egg-info petkit/*.so .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
