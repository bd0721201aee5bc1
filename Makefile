# Everything a newcomer needs: make demo, make test, make lab. Each sets up .venv by itself.
PYTHON ?= $(firstword $(foreach v,python3.11 python3.12 python3.13 python3,$(shell command -v $(v) 2>/dev/null)))
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CHECKS := $(VENV)/.cuda-check
# In a container everybody is root, which JupyterLab refuses by itself; it listens on 127.0.0.1 only.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
# No request to anywhere: neither for a newer version nor for news.
OFFLINE := --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.news_url=None
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

GPU_REPORTS ?= reports/gpu
SANITIZED := compute-sanitizer --error-exitcode 1 $(BIN)/python -m pytest -q -m gpu tests/gpu -k sanitizer
GPU_STEPS := gpu-doctor gpu-tests gpu-kernels gpu-decoding gpu-training gpu-sanitizer

.PHONY: demo test test-all lab bench gpu $(GPU_STEPS) lint clean check-tools

demo: $(STAMP)
	$(BIN)/nanochat run --profile laptop

# Two processes, a file at a time: most tests use one core, and some wait for rustc or a clock.
test: $(STAMP) $(CHECKS)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[adam8,dev,browser,cluster,cuda-check,hub,peers,pypi,tensorboard]'
	command -v npm >/dev/null && npm install -s --prefix tests/node axe-core@4 || echo "no npm: pages are not looked at by axe-core"
	$(BIN)/python -m pytest -q -m "not gpu"

lab: $(STAMP)
	$(BIN)/jupyter lab --ip=127.0.0.1 $(AS_ROOT) $(OFFLINE) notebooks/00_tour.ipynb

bench: $(STAMP)
	$(BIN)/python -m kernels.bench --json reports/bench_cpu.json
	$(BIN)/python -m nanochat_lib.publish.decode_bench --json reports/bench_decode.json
	$(BIN)/python -m nanochat_lib.evals.verification.bench --json reports/bench_verification.json
	$(BIN)/python -m nanochat_lib.train.bench --json reports/bench_training.json
	$(BIN)/python -m nanochat_lib.data.tinyrust.bench --json reports/bench_tinyrust.json
	$(BIN)/python -m nanochat_lib.report.bench --json reports/bench_pages.json

# What only a GPU can show, of this machine's; what fails does not keep the rest back. Each is a
# target of its own, and BIN=FOLDER takes another Python than .venv's.
gpu: $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,cuda-check,gpu-peers]'
	$(MAKE) -k $(GPU_STEPS)

gpu-doctor:
	timeout 120 $(BIN)/python -m nanochat_lib.cli doctor

gpu-tests:
	timeout 300 $(BIN)/python -m pytest -q -m gpu tests/gpu

gpu-kernels:
	timeout 300 $(BIN)/python -m kernels.bench_gpu --out $(GPU_REPORTS)

gpu-decoding:
	timeout 150 $(BIN)/python -m nanochat_lib.publish.decode_gpu --out $(GPU_REPORTS)/decode.json

gpu-training:
	timeout 400 $(BIN)/python -m nanochat_lib.train.bench --gpu --json $(GPU_REPORTS)/training.json

gpu-sanitizer:
	timeout 300 $(SANITIZED)
	timeout 300 $(SANITIZED:compute-sanitizer=compute-sanitizer --tool racecheck)

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

check-tools:
	@command -v rustc >/dev/null || { echo "rustc is not on PATH: install Rust from https://rustup.rs (or your distribution's rustc), then run make again." >&2; exit 1; }
	@test -n "$(PYTHON)" && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: install it, or run make PYTHON=/path/to/python3.11." >&2; exit 1; }

$(STAMP): pyproject.toml constraints.txt | check-tools
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

# The compiler and disassembler that check GPU kernels without a GPU, 0.9 GB: tests do without them.
$(CHECKS): $(STAMP)
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,cuda-check]' && touch $@ || echo "cuda-check was not installed: tests of machine code for GPUs are skipped." >&2

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache
