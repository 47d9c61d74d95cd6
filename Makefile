# `make demo` and `make test` are all a newcomer needs; both make the environment first.
PYTHON ?= python3
BIN := .venv/bin
FACES := data/faces
# Two tests at a time, since many wait more than they compute. They share the cores, so each computes in one thread, as
# does each rank that it starts.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2

# What the other targets make first; alone, it is the environment and nothing else.
env: .venv/.installed

.PHONY: env demo test test-slow test-gpu lint types format lock

# Newer than the lock file exactly when the environment holds what the lock file names.
.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "distrib needs Python 3.11 to 3.13, and $(PYTHON) is $$($(PYTHON) --version): say PYTHON=python3.12"; exit 2; }
	@echo "making .venv: about 6 GB, most of it torch and CUDA's libraries …"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(FACES)/boxes.csv: | .venv/.installed
	@$(BIN)/distrib prepare faces --out $(FACES) --count 3000 --seed 0

# How many torch can use; a GPU that it cannot use is an error, as in every training.
COUNT_GPUS := import sys, torch; from distrib.ranks.machine import unusable_gpu; print(torch.cuda.device_count()); \
	wrong = unusable_gpu(); sys.exit(wrong and f"distrib: error: {wrong}, or train on the CPU: CUDA_VISIBLE_DEVICES= make demo")

demo: .venv/.installed $(FACES)/boxes.csv
	@rm -rf runs/demo
	@launch=cpu; ranks=2; gpus=$$($(BIN)/python -c '$(COUNT_GPUS)') || exit 2; \
	if [ $$gpus -eq 1 ]; then launch=one_gpu ranks=1; elif [ $$gpus -gt 1 ]; then launch=one_node ranks=$$gpus; fi; \
	while [ $$((64 % ranks)) -ne 0 ]; do ranks=$$((ranks - 1)); done; \
	set -x; $(BIN)/accelerate launch --config_file launch/$$launch.yaml --num_processes $$ranks \
		distrib/train.py --config configs/demo.yaml --run.folder runs/demo --run.ranks $$ranks
	@echo
	@echo "Open      runs/demo/report/index.html          what it learnt, how well, and where it looks"
	@echo "Look at   runs/demo/metrics.csv                an epoch a row"
	@echo "          runs/demo/best/                      the model of the best epoch; try it on a photograph:"
	@echo "          $(BIN)/distrib predict runs/demo PHOTO.jpg"
	@echo "          $(FACES)/img_align_celeba/         the faces it learnt from"
	@echo "or        $(BIN)/wandb leet runs/demo/wandb   the curves, in the terminal"

test: .venv/.installed
	@$(PYTEST) -m "not slow and not gpu"
	@echo "left out: the tests marked slow, which take minutes (make test-slow), and gpu (make test-gpu, on a GPU)"

test-slow: .venv/.installed
	@$(PYTEST) -m slow

# One test at a time: some measure the memory of the GPU, and its speed.
test-gpu: .venv/.installed
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make test-gpu needs a GPU, and torch finds none")'
	@$(BIN)/python -m pytest -m gpu

lint: .venv/.installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

types: .venv/.installed
	@$(BIN)/mypy

format: .venv/.installed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock:
	@$(BIN)/uv pip compile pyproject.toml --universal --generate-hashes --python-version 3.11 \
		--extra cuda13 --extra postgres --extra dev --custom-compile-command "make lock" --quiet -o requirements.lock
