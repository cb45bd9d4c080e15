# Everything a person can do here. Needs only Python 3.11 or newer and make; the rest is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
TESTS ?= tests

.PHONY: help up demo compose-secrets test check format generate docs catalogue lock bench bench-recovery bench-failover bench-access soak faults time-oracle simulated-year fuzz probes clean
.DEFAULT_GOAL := help

help: ## Say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

up: .venv/installed ## Start PostgreSQL, scheduler, worker and the examples; Ctrl-C stops everything
	@$(BIN)/python -m local_stack up || [ $$? -eq 130 ] # as Ctrl-C ends it

demo: .venv/installed ## Show the main job on free ports, in about 30 seconds, and compare the records with what happened
	@$(BIN)/python -m local_stack demo

compose-secrets: .venv/installed ## Write development secrets to secrets/, for `docker compose up`, and a token
	@$(BIN)/python -m local_stack.compose_secrets

test: .venv/installed ## Run every test
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q $(TESTS)

check: .venv/installed .codegen/installed ## Lint, types, protos, and that nothing generated has drifted
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --exit-code --diff
	.codegen/bin/python clients/python/generate.py --check
	$(BIN)/python -m docs.generate --check

format: .venv/installed ## Format code and protos
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write

generate: .codegen/installed ## Write the client's stubs from protos/
	.codegen/bin/python clients/python/generate.py

docs: .venv/installed ## Write docs/configuration.md and docs/metrics.md from the code
	@$(BIN)/python -m docs.generate

bench: .venv/installed ## Measure what is promised about speed, beside the floor
	@$(BIN)/python -m benchmarks

bench-recovery: .venv/installed ## Settle 100,000 schedules that a week's outage left overdue; check every one of them
	@$(BIN)/python -m benchmarks.recovery

bench-failover: .venv/installed ## Measure how soon work goes on after a worker, a scheduler or PostgreSQL was killed, in about 6 minutes
	@$(BIN)/python -m benchmarks.failover

bench-access: .venv/installed ## Measure what row level security costs, in about two minutes
	@$(BIN)/python -m benchmarks.access

soak: .venv/installed ## Run 2,000 schedules each second for a minute, and again with a worker and a scheduler killed; check every run
	@$(BIN)/python -m tests.faults.soak
	@$(BIN)/python -m tests.faults.soak --kill

faults: .venv/installed ## Kill, freeze and cut off schedulers, workers and PostgreSQL for 15 minutes; check every run and effect
	@$(BIN)/python -m tests.faults

time-oracle: .venv/installed ## Hold 200 expressions around every clock change of 2005 to 2037 against an oracle, in about 15 minutes
	@$(BIN)/python -m tests.time_oracle

fuzz: .venv/installed ## Try 100,000 mutated JWTs and tokens, and 100,000 malformed calls of a scheduler, in about 10 minutes
	@$(BIN)/python -m tests.security.fuzz

probes: .venv/installed ## Send 10,000 probes of another tenant and another service for one tenant's data
	@$(BIN)/python -m tests.security.probes

simulated-year: .venv/installed ## Simulate a year of 500 schedules with changes and outages, in about 20 minutes; hold it against an oracle
	@$(BIN)/python -m tests.simulation

catalogue: .venv/installed ## Write migrations/catalogue.txt, what the scheduler holds its database against, from the migrations
	@$(BIN)/python -m tests.migrations.write_catalogue

lock: .venv/installed ## Pin the newest versions that fit, with hashes
	$(BIN)/python requirements/lock.py

clean: ## Remove the environments and the local data
	rm -rf .venv .codegen .carillon

.venv/installed: requirements/dev.lock pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Carillon needs Python 3.11 or newer; say which with `make PYTHON=python3.12 ...`")'
	@echo "installing into .venv (about half a minute)"
	@$(PYTHON) -m venv .venv
	@$(PIP) install --require-hashes -r requirements/dev.lock
	@$(PIP) install --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

.codegen/installed: requirements/codegen.lock
	@$(PYTHON) -m venv .codegen
	@.codegen/bin/pip --disable-pip-version-check --quiet install --require-hashes -r requirements/codegen.lock
	@touch $@
