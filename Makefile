# make quickstart   train the example run on this machine's CPU, in an environment of its own
# make test         every test, the contract suite against the real SGLang server included
# make test-sglang  that suite alone
# make test-faults  small runs with random processes killed at random moments (FAULT_RUNS, FAULT_SEED)
# make test-ray     the same on this machine and on a Ray cluster of three simulated ones, which get lost, too (FAULT_PLACEMENT)
# make test-cluster runs on a Ray cluster whose machines come and go, and a job of Slurm's on two machines (minutes, as root)
# make matrix       every layout of the learner beside one process, and how far they are apart (minutes)
# make gpu-check    on a machine with CUDA: learner and engine against a CPU, pushes, speed, memory; JSON (minutes)
# make mutants      plants a bug for each line that upholds an invariant; a test has to catch each (minutes)
# make lint         ruff, pyright, the direction of imports, hadolint
# make docs         writes the pages of docs/ that are made from the code, and makes the site
# make site         the documentation as a site, in site/; a link that leads nowhere is an error
# make container-steps  carries out the steps of containers/Dockerfile in a directory of their own, without Docker (minutes)
# make clean        forget the environment and what tools left; runs/ stays
#
# PYTHON=python3.12 picks the interpreter, VENV=.venv-312 the environment's place.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DOCS_VENV ?= .venv-docs

export OMP_NUM_THREADS ?= 1
unexport PYTHONDONTWRITEBYTECODE  # each of a run's processes would compile all of it again

.PHONY: quickstart test test-sglang test-faults test-ray test-cluster matrix gpu-check mutants lint docs site container-steps clean

quickstart: $(VENV)/.quickstart-installed
	$(BIN)/miles-async launch examples/quickstart.toml

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n 4 --dist loadgroup --no-loadscope-reorder

test-sglang: $(VENV)/.test-installed
	ENGINE=sglang $(BIN)/python -m pytest -m sglang

test-faults: $(VENV)/.quickstart-installed
	$(BIN)/miles-async bench faults

test-ray: $(VENV)/.test-installed
	FAULT_PLACEMENT=$${FAULT_PLACEMENT:-local,ray} FAULT_RUNS=$${FAULT_RUNS:-30} FAULT_STEPS=$${FAULT_STEPS:-60} \
		$(BIN)/miles-async bench faults

test-cluster: $(VENV)/.test-installed
	$(BIN)/python -m pytest -m cluster

matrix: $(VENV)/.test-installed
	$(BIN)/python -m pytest -m matrix -rP

gpu-check: $(VENV)/.quickstart-installed
	@$(BIN)/python -m benchmarks.gpu_check

mutants: $(VENV)/.test-installed
	$(BIN)/python -m tests.mutations $(MUTANTS)

lint: $(VENV)/.test-installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/hadolint containers/Dockerfile containers/Dockerfile.cuda

docs: $(VENV)/.quickstart-installed
	$(BIN)/python -m docs.generated
	$(MAKE) site

site: $(DOCS_VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet

container-steps: $(BIN)/python
	$(BIN)/python -m containers.steps $(DIRECTORY)

clean:
	rm -rf $(VENV) $(DOCS_VENV) site build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python {v[0]}.{v[1]} is too old: make PYTHON=python3.11, or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.quickstart-installed: requirements/quickstart.txt requirements/nodeps.txt requirements/constraints.txt requirements/install.sh pyproject.toml | $(BIN)/python
	PYTHON=$(BIN)/python requirements/install.sh quickstart
	@touch $@

$(VENV)/.test-installed: requirements/test.txt requirements/test-nodeps.txt $(VENV)/.quickstart-installed
	PYTHON=$(BIN)/python requirements/install.sh test
	@touch $@

$(DOCS_VENV)/.installed: requirements/docs.txt requirements/constraints.txt requirements/install.sh | $(BIN)/python
	$(BIN)/python -m venv $(DOCS_VENV)
	PYTHON=$(DOCS_VENV)/bin/python requirements/install.sh docs
	@touch $@
