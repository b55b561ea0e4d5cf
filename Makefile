# `make demo` and `make test` do everything on a fresh machine, set-up included. `make help` lists the others.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup data demo run test check format up down mlflow clean

VENV ?= .venv
PARAMS ?=
DATA ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The stages are commands that DVC and the flows start by name.
export PATH := $(abspath $(BIN)):$(PATH)
# Where it is set, every stage compiles all that it imports anew: half a minute each time.
unexport PYTHONDONTWRITEBYTECODE

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP)  ## make .venv from requirements.lock; a second run does nothing

$(STAMP): requirements.lock pyproject.toml
	@bash infra/setup.sh $(VENV)
	@touch $@

data: $(STAMP)  ## render the demo corpus into data/, if there is no data/
	@test -e data || { echo "data: rendering the demo corpus"; $(BIN)/python -m demo.corpus data; }

demo: data  ## raw recordings to a registered model, with the demo's parameters
	@$(BIN)/python -m flows factory

run: $(STAMP)  ## the same with your own: make run PARAMS=params/full.yaml DATA=path/to/folder
	@$(BIN)/python -m flows factory $(if $(PARAMS),--params "$(PARAMS)") $(if $(DATA),--data "$(DATA)")

test: $(STAMP)  ## the tests
	@$(BIN)/python -m pytest

check: $(STAMP)  ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy valle2 flows demo infra
	@$(BIN)/lint-imports

format: $(STAMP)  ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

up: $(STAMP)  ## start Prefect, MLflow and one worker on loopback
	@$(BIN)/python -m infra up

down: $(STAMP)  ## stop what `make up` started
	@$(BIN)/python -m infra down

mlflow: $(STAMP)  ## open MLflow's pages on loopback, until Ctrl-C
	@$(BIN)/python -m infra mlflow

clean:  ## remove what runs have made; keeps .venv and data/
	@rm -rf artifacts .valle2 .dvc/cache .dvc/tmp build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
