# Everything sets itself up: a virtual environment in .venv, made anew when the project's files ask for it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FIXTURES ?= tests/conformance
STAMP := $(VENV)/.installed

.PHONY: demo test coverage test-slow test-clients test-browser test-ray fuzz conformance lint types docs equality austen default wheel clean

$(STAMP): pyproject.toml constraints.txt $(wildcard src/unmask/backends/native/*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## ask the default model, race its modes, then watch a full canvas denoise
	$(BIN)/unmask generate "Why is the sky blue?" -n 96
	$(BIN)/unmask race "Why is the sky blue?" --mode verify -n 96
	$(BIN)/unmask generate -m assist --system "areas: Den, Bedroom" "turn off the lights in the den and set the bedroom to 21 degrees"
	$(BIN)/unmask generate "It is a truth universally acknowledged" -m austen -n 100 --seed 1 --pause 0.08

test: $(STAMP)  ## the whole suite but the slow marks, under ten minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart 0

coverage: $(STAMP)  ## the suite, with the share of lines that it runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart 0 --cov --cov-report=term:skip-covered

test-browser: $(STAMP)  ## the playground in a real Chromium, which it gets if it can
	sh tests/browser.sh $(BIN)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

test-clients: $(STAMP)  ## frameworks' own clients against a live server, and OpenAI's for JavaScript where there is npm
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,clients]'
	! command -v npm >/dev/null || npm install --silent --no-audit --prefix $(VENV)/js openai
	NODE_PATH=$(VENV)/js/node_modules $(BIN)/python -m pytest -q -rs tests/serving/test_clients.py tests/serving/test_sdk_clients.py

test-ray: $(STAMP)  ## replicas on a local Ray, one of them killed: about two minutes and 2 GB
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray]'
	$(BIN)/python -m pytest -q -m ray

fuzz: $(STAMP)  ## 10,000 hostile requests to a server in at most eleven minutes: no 5xx, no hang, nothing left behind
	FUZZ_REQUESTS=10000 FUZZ_MINUTES=11 $(BIN)/python -m pytest -q -m slow tests/serving/test_fuzz.py

conformance: $(STAMP)  ## recorded runs of the public references, made again: a row a family
	PYTHONPATH=tests $(BIN)/python -m conformance.checks $(FIXTURES)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)  ## the site, in site/; a warning is an error
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

equality: $(STAMP)  ## record behaviour into AFTER and compare with BEFORE: make equality BEFORE=before.json
	$(BIN)/python tools/equality.py record $(or $(AFTER),after.json)
	$(BIN)/python tools/equality.py compare $(BEFORE) $(or $(AFTER),after.json)

austen: $(STAMP)  ## train both models from scratch on two cores, one core each; resumes when started again
	$(BIN)/unmask train recipes/austen.yaml training.threads=1 & first=$$!; \
	$(BIN)/unmask train recipes/austen-ar.yaml training.threads=1; second=$$?; \
	wait $$first && exit $$second

default: $(STAMP)  ## make the default model again: its base's own text, then the adapter; resumes when started again
	$(BIN)/unmask adapt recipes/default.yaml --stage text
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 -m unmask adapt recipes/default.yaml --stage train

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist src/*.egg-info
