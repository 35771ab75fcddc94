# Everything runs through here. The first target that needs Python makes .venv from requirements.lock.
PROFILE ?= quick
MIX     ?= phantom
SEED    ?= 0
BUILD   ?= build
DATA    ?= ../shared/data
DEVICE  ?= auto
ALLOW_PARTIAL ?=
MODELS  ?= models
GPUS    ?= 1
PYTHON  ?= python3

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BOOK   := PYTHONWARNINGS=ignore::DeprecationWarning $(BIN)/python -m cxrclip.book.reproduce
LAUNCH := $(BIN)/accelerate launch --num_processes $(GPUS) --num_machines 1 --mixed_precision no --dynamo_backend no
OPTIONS = --profile $(PROFILE) --mix $(MIX) --seed $(SEED) --build $(BUILD) --data $(DATA) --device $(DEVICE)

.DEFAULT_GOAL := help
.PHONY: help env data augment-texts reproduce dry-run pretrain export results tables figures notebooks test lint unit \
        nbval book lab bench lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo "  variables:  PROFILE=$(PROFILE) (quick, standard, paper)  MIX=$(MIX) (phantom, real-sample, paper, or your.yaml)"
	@echo "              SEED=$(SEED)  BUILD=$(BUILD)  DATA=$(DATA)  DEVICE=$(DEVICE) (auto, cpu, cuda)"
	@echo "              make data:  ALLOW_PARTIAL=1 takes a partial download; SET=\"image_size=256 seed=1\" sets parameters"

env: $(STAMP)  ## make .venv from requirements.lock (done by itself when needed)

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=... (found %d.%d)" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "making $(VENV) from requirements.lock (a few minutes, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

reproduce: $(STAMP)  ## run the notebooks in order: tables, figures and results.csv in build/<mix>-<profile>/
	@$(BOOK) $(OPTIONS)

dry-run: $(STAMP)  ## the paper's networks on a few studies, random weights: training, evaluation, tables, and what it costs
	@$(BOOK) $(OPTIONS) --profile paper --dry-run

pretrain: $(STAMP)  ## GPUS=8: train the runs of PROFILE and MIX on that many GPUs; make reproduce then finds them
	@$(LAUNCH) $(if $(filter-out 1,$(GPUS)),--multi_gpu) -m cxrclip.book.reproduce $(OPTIONS) --pretrain

results:  ## PROFILE=standard on the phantom world (two hours), then results/standard/ and all that is drawn from it
	@$(MAKE) --no-print-directory reproduce PROFILE=standard MIX=phantom SEED=0
	@$(BIN)/python -m cxrclip.book.render keep --results $(BUILD)/phantom-standard/results.csv
	@$(MAKE) --no-print-directory tables figures

data: $(STAMP)  ## SOURCE=<name> ROOT=<download> OUT=<folder>: a public data set becomes a study folder
	@$(if $(and $(SOURCE),$(ROOT),$(OUT)),,$(error make data needs SOURCE=<name> ROOT=<download> OUT=<folder>))
	@$(BIN)/python -m cxrclip.data.sources --source "$(SOURCE)" --root "$(ROOT)" --out "$(OUT)" \
		$(if $(filter 1,$(ALLOW_PARTIAL)),--allow-partial) $(foreach pair,$(SET),--option '$(pair)')

augment-texts: $(STAMP)  ## STUDIES=<folder> OUT=<new folder>: back-translated report sections, by models in MODELS=models
	@$(if $(and $(STUDIES),$(OUT)),,$(error make augment-texts needs STUDIES=<folder> OUT=<new folder>))
	@$(BIN)/python -m cxrclip.data.augment --studies "$(STUDIES)" --out "$(OUT)" --models "$(MODELS)" --device $(DEVICE) \
		$(if $(THERE),--there "$(THERE)") $(if $(BACK),--back "$(BACK)")

tables: $(STAMP)  ## RESULTS.md and the verdicts of README and book, from results/standard/ alone
	@$(BIN)/python -m cxrclip.book.render tables

figures: $(STAMP)  ## figures/*.png, *.svg, *.json from results/standard/ alone
	@$(BIN)/python -m cxrclip.book.render figures

export: $(STAMP)  ## RUN=build/runs/<fingerprint> OUT=<new folder>: a trained model for plain transformers, with its card
	@$(if $(and $(RUN),$(OUT)),,$(error make export needs RUN=build/runs/<fingerprint> OUT=<new folder>))
	@$(BIN)/python -m cxrclip.hub.export --run "$(RUN)" --out "$(OUT)" --data "$(DATA)"

notebooks: $(STAMP)  ## execute the committed notebooks in place (quick profile, phantom world)
	@$(BOOK) --in-place

test: lint unit nbval  ## ruff, pytest, and nbval over the committed notebooks

lint: $(STAMP)  ## ruff over library, tests and notebooks
	@$(BIN)/ruff check .

unit: $(STAMP)  ## pytest, on all cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

nbval: $(STAMP)  ## rerun the committed notebooks and compare their outputs
	@TQDM_DISABLE=1 $(BIN)/python -m pytest --nbval --nbval-cell-timeout=1500 -p no:cacheprovider notebooks

book: $(STAMP)  ## the committed notebooks as a web site: build/book/index.html
	@$(BIN)/python -m sphinx -W --keep-going -q -b html notebooks $(BUILD)/book
	@echo "open $(BUILD)/book/index.html"

lab: $(STAMP)  ## JupyterLab on the notebooks
	@cd notebooks && ../$(BIN)/jupyter lab

bench: $(STAMP)  ## measured ratios against obvious alternatives
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:  ## remove build/ (prepared data, runs, results); .venv stays
	rm -rf $(BUILD)
