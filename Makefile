# Shortcuts for a bare machine with Python, g++ and make. The plain commands are printed as they run; README names
# them too. PY is the active environment when it imports torch, else .venv, made on first use.
.PHONY: help install test demo lint format check-cuda sanitize sanitize-thread sanitize-address clean

# Looked up once, and only by a target that needs it.
PY = $(eval PY := $(or $(shell sh tools/bootstrap_env.sh),$(error no Python environment, see above)))$(PY)
# Tools of an environment that is not activated (cmake, ninja, ruff) are found all the same.
BIN = $(dir $(PY))
CMAKE = PATH="$(BIN):$$PATH" cmake -G Ninja
BUILD = PATH="$(BIN):$$PATH" cmake --build
SANITIZERS = thread address
CPP = git ls-files --cached --others --exclude-standard '*.h' '*.inc' '*.cc' '*.cu' '*.cuh'
DEMO_ARGS =
PYTEST_ARGS =

help:
	@echo "make test        editable install and pytest (PYTEST_ARGS=...)"
	@echo "make demo        two-process training run, dcomm beside the baseline (DEMO_ARGS=...)"
	@echo "make lint        ruff, mypy, clang-format, floors; changes nothing"
	@echo "make format      ruff and clang-format, in place"
	@echo "make sanitize    C++ checks under ThreadSanitizer, then AddressSanitizer and UBSan (SANITIZERS=...)"
	@echo "make check-cuda  compile the CUDA module for sm_90 + PTX; fail on spills and stack frames"
	@echo "make clean       remove everything that was built, .venv included"

# The CUDA module is for the GPU machine: pip install . builds it when nvcc is there.
install:
	DCOMM_CUDA=OFF $(PY) -m pip install --quiet -e '.[test]'

test: install
	$(PY) -m pytest $(PYTEST_ARGS)

demo: install
	OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run --standalone --nproc-per-node 2 examples/train_gpt.py --compare $(DEMO_ARGS)

lint:
	$(BIN)ruff check .
	$(BIN)ruff format --check .
	$(BIN)mypy
	$(CPP) | xargs $(BIN)clang-format --dry-run -Werror
	$(PY) tools/check_floors.py

format:
	$(BIN)ruff check --fix .
	$(BIN)ruff format .
	$(CPP) | xargs $(BIN)clang-format -i

sanitize: $(SANITIZERS:%=sanitize-%)

sanitize-thread sanitize-address: sanitize-%:
	$(CMAKE) -S . -B build/$* -DDCOMM_PYTHON=OFF -DDCOMM_CHECKS=ON -DDCOMM_CHECKS_EXE=ON -DDCOMM_SANITIZE=$*
	$(BUILD) build/$*
	bash tools/run_sanitized.sh build/$*/dcomm_checks

check-cuda:
	$(CMAKE) -S . -B build/cuda -DDCOMM_PYTHON=OFF -DDCOMM_CUDA=ON "-DDCOMM_CUDA_ARCHS=80;90" -DDCOMM_PTXAS_LOG=ON
	$(BUILD) build/cuda --target dcomm_cuda
	$(PY) tools/check_cuda_resources.py build/cuda

clean:
	rm -rf build dist .venv *.egg-info dcomm/_core*.so dcomm/_cuda.so
