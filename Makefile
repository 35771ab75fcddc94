# Everything runs through here. The first target that needs Python makes .venv from requirements.lock.
PROFILE ?= quick
MIX     ?= phantom
SEED    ?= 0
BUILD   ?= build
DATA    ?=
DEVICE  ?= auto
ALLOW_PARTIAL ?=
MODELS  ?= models
GPUS    ?= 1
PYTHON  ?= python3
CHROMIUM ?= chromium

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
CXRCLIP := PYTHONWARNINGS=ignore::DeprecationWarning $(BIN)/cxrclip
LAUNCH  := $(BIN)/accelerate launch --multi_gpu --num_processes $(GPUS) --num_machines 1 --mixed_precision no \
	--dynamo_backend no -m cxrclip.cli
PLACES   = --build "$(BUILD)" --data "$(DATA)" --device $(DEVICE)
OPTIONS  = --profile $(PROFILE) --mix "$(MIX)" --seed $(SEED) $(PLACES)
# What `make check` runs: quick tests of the paper's files and of the rules of the house.
QUICK    = tests/test_losses.py tests/test_metrics.py tests/test_prompts.py tests/test_studies.py tests/test_cli.py

.DEFAULT_GOAL := help
.PHONY: help env data augment-texts reproduce dry-run pretrain export results tables figures notebooks check test lint \
        style types unit nbval book pdf test-book lab bench fuzz golden lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo "  variables:  PROFILE=$(PROFILE) (quick, standard, paper)  MIX=$(MIX) (phantom, real-sample, paper, or your.yaml)"
	@echo "              SEED=$(SEED)  BUILD=$(BUILD)  DATA=<folder of downloads>  DEVICE=$(DEVICE) (auto, cpu, cuda)"
	@echo "              make data:  ALLOW_PARTIAL=1 takes a partial download; SET=\"image_size=256 seed=1\" sets parameters"

env: $(STAMP)  ## make .venv from requirements.lock (done by itself when needed)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=... (found %d.%d)" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "making $(VENV) from requirements.lock (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

reproduce: $(STAMP)  ## data, runs, notebooks: tables, figures and results.csv in build/<mix>-<profile>/
	@$(CXRCLIP) reproduce $(OPTIONS)

dry-run: $(STAMP)  ## the paper's networks on a few studies, random weights: training, evaluation, tables, and what it costs
	@$(CXRCLIP) dry-run --profile paper --mix "$(MIX)" --seed $(SEED) $(PLACES)

pretrain: $(STAMP)  ## the data and runs of PROFILE and MIX alone, GPUS=8: on that many; make reproduce then finds them
	@$(if $(filter-out 1,$(GPUS)),$(LAUNCH),$(CXRCLIP)) pretrain $(OPTIONS)

results:  ## PROFILE=standard on the phantom world (hours), then the committed results and all that is drawn from them
	@$(MAKE) --no-print-directory reproduce PROFILE=standard MIX=phantom SEED=0
	@$(CXRCLIP) keep --build "$(BUILD)"
	@$(MAKE) --no-print-directory tables figures

data: $(STAMP)  ## SOURCE=<name> ROOT=<download> OUT=<folder>: a public data set becomes a study folder
	@$(if $(and $(SOURCE),$(ROOT),$(OUT)),,$(error make data needs SOURCE=<name> ROOT=<download> OUT=<folder>))
	@$(CXRCLIP) data --source "$(SOURCE)" --root "$(ROOT)" --out "$(OUT)" \
		$(if $(filter 1,$(ALLOW_PARTIAL)),--allow-partial) $(foreach pair,$(SET),--option '$(pair)')

augment-texts: $(STAMP)  ## STUDIES=<folder> OUT=<new folder>: back-translated report sections, by models in MODELS=models
	@$(if $(and $(STUDIES),$(OUT)),,$(error make augment-texts needs STUDIES=<folder> OUT=<new folder>))
	@$(CXRCLIP) augment-texts --studies "$(STUDIES)" --out "$(OUT)" --models "$(MODELS)" --device $(DEVICE) \
		$(if $(THERE),--there "$(THERE)") $(if $(BACK),--back "$(BACK)")

tables: $(STAMP)  ## tables and verdicts from the committed results alone
	@$(CXRCLIP) tables

figures: $(STAMP)  ## figures/*.png, *.svg, *.json from the committed results alone
	@$(CXRCLIP) figures

export: $(STAMP)  ## RUN=build/runs/<key> OUT=<new folder>: a trained model for plain transformers, with its card
	@$(if $(and $(RUN),$(OUT)),,$(error make export needs RUN=build/runs/<key> OUT=<new folder>))
	@$(CXRCLIP) export --run "$(RUN)" --out "$(OUT)" --data "$(DATA)"

notebooks: $(STAMP)  ## execute the committed notebooks in place (quick profile, phantom world)
	@$(CXRCLIP) notebooks

check: style  ## in a minute: ruff, import direction, quick tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto $(wildcard $(QUICK))

test: lint unit nbval  ## ruff, pytest, and nbval over the committed notebooks

lint: style types  ## ruff, import direction, types of the paper's files

style: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports

types: $(STAMP)
	@$(BIN)/mypy

unit: $(STAMP)  ## pytest, on all cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

nbval: $(STAMP)  ## rerun the committed notebooks and their solutions, one a core, and compare their outputs
	@$(CXRCLIP) pretrain
	@$(BIN)/python tests/solutions.py build/nbval
	@TQDM_DISABLE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --nbval --nbval-cell-timeout=1500 -p no:cacheprovider \
		-n auto --dist loadfile build/nbval

golden: $(STAMP)  ## record the golden numbers anew, after a version was raised (CONTRIBUTING.md)
	@GOLDEN_RECORD=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_golden.py -k "not moves"

book: $(STAMP)  ## the committed notebooks as a web site: build/book/index.html
	@$(BIN)/python -m sphinx -W --keep-going -q -b html notebooks $(BUILD)/book
	@echo "open $(BUILD)/book/index.html"

pdf: $(STAMP)  ## the book on paper: build/book.pdf, printed by Chromium
	@$(BIN)/python -m sphinx -W --keep-going -q -b singlehtml -t paper notebooks $(BUILD)/book-pdf
	@$(CHROMIUM) --headless --no-sandbox --disable-gpu --no-pdf-header-footer --print-to-pdf="$(BUILD)/book.pdf" \
		$(BUILD)/book-pdf/index.html 2> $(BUILD)/book-pdf/chromium.log || { cat $(BUILD)/book-pdf/chromium.log; exit 1; }
	@echo "$(BUILD)/book.pdf"

test-book: book  ## every page of the web site in headless Chromium, wide and narrow, light and dark
	@BOOK="$(BUILD)/book" $(BIN)/python -m pytest -rs tests/browser

lab: $(STAMP)  ## JupyterLab on the notebooks
	@cd notebooks && ../$(BIN)/jupyter lab

bench: $(STAMP)  ## measured ratios against obvious alternatives
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; OMP_NUM_THREADS=1 $(BIN)/python $$script; done

fuzz: $(STAMP)  ## thousands of damaged files, and faults at random moments: benchmarks/fuzz.md, kills.md (an hour)
	@$(BIN)/python tests/fuzzing.py
	@$(BIN)/python benchmarks/kills.py

lock:  ## requirements.lock anew: the newest packages that pyproject.toml allows, as a fresh environment resolves them
	@rm -rf $(BUILD)/lock
	@$(PYTHON) -m venv $(BUILD)/lock
	@$(BUILD)/lock/bin/python -m pip install --quiet --no-compile setuptools wheel -e '.[data,book,test,translate]'
	@$(BUILD)/lock/bin/python .ci/lock.py > $(BUILD)/lock.txt
	@mv $(BUILD)/lock.txt requirements.lock
	@rm -rf $(BUILD)/lock

clean:  ## remove build/ (prepared data, runs, results); .venv stays
	rm -rf $(BUILD)
