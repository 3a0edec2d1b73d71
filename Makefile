# Needs python3 (3.11 to 3.13), make and gcc. `make` alone prints what there is.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
export PYTHON
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# The stamp's name says what .venv was built from: any change of that, or a moved checkout, builds .venv anew.
STAMP := .venv/built-$(shell { pwd; cat requirements.txt setup.py .ci/environment; } | sha256sum | cut -c1-16)

# Without an accelerator DeepSpeed warns several times over that it takes the CPU.
ifeq ($(wildcard /dev/nvidia* /dev/kfd /dev/dri /dev/accel*),)
export DS_ACCELERATOR := cpu
endif

TRAIN := deepspeed --quiet --num_accelerators 1 pretrain/train.py --config configs/demo.yaml

# Tests of one file share runs that take a minute to make: one process is to have them all.
PYTEST := OMP_NUM_THREADS=1 python -m pytest -n logical --maxprocesses 8 --dist loadfile

define DEMO_DONE

The demo is complete; make demo again trains no further.
  data/stdlib/             the corpus: token shards and their manifest
  runs/demo/report.html    loss, learning rate, throughput and memory: open it in a browser
  runs/demo/               resolved config.yaml, metrics.jsonl, checkpoints/
  exports/demo/            the model as a Hugging Face folder
Next:
  source .venv/bin/activate
  python pretrain/generate.py --checkpoint exports/demo --prompt 'import '
  deepspeed pretrain/train.py --config configs/demo.yaml --dry-run model.num_layers=8
  deepspeed pretrain/train.py --config configs/demo.yaml run.dir=runs/deeper model.num_layers=8
  python benchmarks/step.py --config configs/demo.yaml
endef
export DEMO_DONE

.PHONY: help environment demo test test-all test-faults lint types format clean

help:  ## print this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

environment: $(STAMP)  ## build .venv where it is missing or outdated

$(STAMP):
	@.ci/environment
	@touch $@

demo: $(STAMP)  ## prepare a corpus, train, evaluate, export, generate: about 10 minutes on 2 cores
	python pretrain/prepare.py --config configs/corpora/stdlib.yaml
	@echo "$(TRAIN)"
	@# On Ctrl-C the launcher would end before its rank has saved: it is not to hear of it. Its exit code is not the run's.
	@trap : INT; (trap '' INT; exec $(TRAIN)) || [[ $$? != 2 ]]; python pretrain/status.py runs/demo
	python pretrain/evaluate.py --checkpoint runs/demo
	python pretrain/export.py --checkpoint runs/demo --out exports/demo
	python pretrain/generate.py --checkpoint exports/demo --seed 1 --prompt-file pretrain/errors.py | tee runs/demo/sample.txt
	python pretrain/report.py runs/demo
	@echo "$$DEMO_DONE"

test: $(STAMP)  ## run the tests
	$(PYTEST)

test-all: $(STAMP)  ## run the tests, the slow ones too
	$(PYTEST) -m 'not faults'

test-faults: $(STAMP)  ## kill, damage, starve and hang runs; writes what they survived into docs/reliability.md
	$(PYTEST) tests/faults -m '' --write-table

lint: $(STAMP)  ## check style and formatting
	ruff check
	ruff format --check

types: $(STAMP)  ## check types
	mypy

format: $(STAMP)  ## fix style and formatting where a tool can
	ruff check --fix
	ruff format

clean:  ## remove .venv and caches; data/, runs/ and exports/ stay
	rm -rf .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
