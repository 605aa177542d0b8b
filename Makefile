# Two commands do it all on a machine with Python 3.11 and nothing else:
#   make run     the environment, the data, the pipeline on batch 0; prints where the reports are
#   make test    the tests
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 5000
API_PORT ?= 8000
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

.PHONY: help run test serve lab mlflow docs doctor lock check release-check clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The environment is the lock file's, hash by hash, compiled once; the .pth line has every program in it start without telemetry.
$(VENV)/.ready: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not here; install Python 3.11, or say: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "Making the environment in $(VENV) (a minute or a few, once) …"
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	awk '/^[a-z]/ {wanted = /^uv==/} wanted' requirements.lock > $(VENV)/uv.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(VENV)/uv.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	echo "import health_predict" > $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/health_predict_start.pth
	touch $@

run: $(VENV)/.ready  ## Environment, data, pipeline on batch 0
	@$(BIN)/health-predict run --batch 0

test: $(VENV)/.ready  ## The tests
	@$(BIN)/python -m pytest $(ARGS)

serve: $(VENV)/.ready  ## The API, its pages and the reports, on port 8000 (API_PORT)
	@$(BIN)/health-predict serve --port $(API_PORT)

lab: $(VENV)/.ready  ## JupyterLab on the notebooks, with nbdev's git hooks set
	@$(BIN)/nbdev-install-hooks
	@$(BIN)/health-predict data split --batch 0
	$(BIN)/jupyter lab --config=.jupyter/jupyter_server_config.py

mlflow: $(VENV)/.ready  ## MLflow's page on what ran
	@$(BIN)/health-predict mlflow --port $(PORT)

docs: $(VENV)/.ready  ## The guide to read offline: README, how-tos, notebooks with their values
	@$(BIN)/health-predict docs

doctor: $(VENV)/.ready  ## What is missing, and what to do
	@$(BIN)/health-predict doctor

lock: $(VENV)/.ready  ## Resolve the dependencies anew
	$(BIN)/uv pip compile --quiet pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url -o requirements.lock

check: $(VENV)/.ready  ## Library and notebooks in step, and clean
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean
	@$(BIN)/ruff check
	@git diff --exit-code --stat -- nbs health_predict

# What a user will install, installed: the wheel in an environment of its own answers, and names what it lacks.
release-check: $(VENV)/.ready  ## Build wheel and source archive, install the wheel afresh, ask it
	rm -rf dist $(VENV)/release
	$(BIN)/uv build --quiet --out-dir dist
	$(BIN)/uvx --quiet twine check --strict dist/*
	$(BIN)/uv venv --quiet --python $(PYTHON) $(VENV)/release
	VIRTUAL_ENV=$(CURDIR)/$(VENV)/release $(BIN)/uv pip install --quiet dist/*.whl
	cd $(VENV)/release && bin/health-predict --version && bin/health-predict data synthetic 200 cohort.csv
	cd $(VENV)/release && bin/python -c "from health_predict.schema import check_file; assert len(check_file('cohort.csv').rows)==200; from health_predict.api import create_app"
	tar tf dist/*.tar.gz | grep -q nbs/library/ && tar tf dist/*.tar.gz | grep -q pipeline.yaml

clean:  ## Remove the environment; storage stays
	rm -rf $(VENV)
