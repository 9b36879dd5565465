# Every target makes its own .venv from Python 3.11+ and pip, and installs what it needs into it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Test processes side by side: most of the time goes into compilers, which use one core. A file stays in one process.
WORKERS ?= 2
BESIDE := -n $(WORKERS) --dist loadfile

.PHONY: help test test-all test-peers test-kernels test-arm lint bench bench-full bench-compare build-report gpu mutation \
	docs clean

help:
	@echo "make test           every promise once, on one machine without a GPU (six to seven minutes)"
	@echo "make test-all       what make test leaves out: long cases, planted bugs, rehearsals (half an hour)"
	@echo "make test-peers     parity with PyTorch, Keras and JAX, which it installs"
	@echo "make test-kernels   every CUDA module compiled by NVIDIA's compilers, for one or two of seven architectures: no GPU"
	@echo "make test-arm       the CPU kernels as 64-bit ARM would run them, in QEMU (needs it and a cross compiler)"
	@echo "make gpu            on a machine with a GPU: parity, sanitizer and throughput, into OUT"
	@echo "make lint           ruff and mypy"
	@echo "make docs           the documentation as a site in out/docs; a broken link is an error"
	@echo "make mutation       plants bugs one by one; each must make tests fail"
	@echo "make bench          throughput beside the peers that are installed (one to three minutes)"
	@echo "make bench-full     the same over the full grid; ARGS= is handed on, as for bench"
	@echo "make build-report   ARGS=--write writes kernels/build-report.md anew"
	@echo "make bench-compare  single operations against the last saved run (pytest-benchmark)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp an extra: installed again when pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@

# The kernels first, each by one of the processes: each test process would compile all that its tests call. Those of
# the sLSTM are left out: one test file calls them, in float32.
test: $(VENV)/.installed-test
	$(BIN)/python -m rnnkit.warmup --backend numba --dtype float32 float64 --processes $(WORKERS) \
		--cell rnn_tanh rnn_relu gru gru_reset_before lstm
	$(PYTEST) $(BESIDE) -m "not slow and not kernels and not peers and not gpu" $(ARGS)

test-all: $(VENV)/.installed-test
	$(PYTEST) $(BESIDE) -m "slow and not kernels and not peers and not gpu" $(ARGS)

test-peers: $(VENV)/.installed-test $(VENV)/.installed-peers $(VENV)/.installed-torch-examples \
	$(VENV)/.installed-torch-libraries
	RNNKIT_REQUIRED=peers $(PYTEST) $(BESIDE) -m peers tests/peers tests/torch $(ARGS)

# The tests that need NVIDIA's compilers, or a CuPy beside them.
COMPILING := tests/cuda/test_cuda_build.py tests/cuda/test_cuda_occupancy.py tests/cuda/test_numba_ptx.py \
	tests/tools/test_fakecupy_names.py

test-kernels: $(VENV)/.installed-test $(VENV)/.installed-cuda-build
	RNNKIT_REQUIRED=kernels $(PYTEST) -m "not slow and not peers and not gpu" $(COMPILING) $(ARGS)

test-arm: $(VENV)/.installed-test
	$(BIN)/python -m tests.tools.arm $(ARGS)

build-report: $(VENV)/.installed-test $(VENV)/.installed-cuda-build
	$(BIN)/python -m tests.tools.build_report $(ARGS)

# In place, with what PYTHON has: a machine with a GPU may have no network, and its own CuPy and PyTorch.
gpu:
	PYTHONPATH=. $(PYTHON) -m bench.gpu $(if $(OUT),--out $(OUT)) $(ARGS)

lint: $(VENV)/.installed-test $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutation: $(VENV)/.installed-test
	$(BIN)/python -m tests.tools.mutants $(ARGS)

# No --quiet: it would hide warnings from --strict too. NO_MKDOCS_2_WARNING hides an announcement of mkdocs-material.
docs: $(VENV)/.installed-docs
	$(BIN)/python docs/figures.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo "out/docs/index.html is the site. With a search: $(PYTHON) -m http.server -d out/docs"

bench: $(VENV)/.installed-bench
	$(BIN)/python -m bench $(ARGS)

bench-full: $(VENV)/.installed-bench
	$(BIN)/python -m bench --grid full $(ARGS)

bench-compare: $(VENV)/.installed-bench
	$(PYTEST) bench/test_ops_benchmark.py --benchmark-enable --benchmark-only --benchmark-autosave \
		$(if $(wildcard .benchmarks/*/*.json),--benchmark-compare) $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis out
