# Python 3.11 or newer, make and git are all that is needed; everything else lands in .venv and in the user's cache.

SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN := .venv/bin
# What is installed is named by the content of what says so: a second call costs nothing, a changed lock installs again.
INSTALLED := .venv/installed-$(shell cat requirements.lock pyproject.toml | cksum | tr -dc '0-9')
STARTED_AT := $(shell date +%s)
PYTEST_ARGS ?=
UP_ARGS ?=

.PHONY: help
help: ## Show what there is to make
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null || true

.PHONY: install
install: $(INSTALLED) ## Create .venv and fetch what the local stack needs

.PHONY: demo
demo: $(INSTALLED) ## Start the stack, run the examples on real data, stop everything
	@ready_at=$$(date +%s); status=0; \
	$(BIN)/python examples/demo.py || status=$$?; \
	echo "make demo: downloads and installation $$((ready_at - $(STARTED_AT))) s, run $$(($$(date +%s) - ready_at)) s"; \
	exit $$status

.PHONY: up
up: $(INSTALLED) ## Run the stack until Ctrl-C (UP_ARGS="--fresh --orchestrators 2 --workers 2")
	@exec $(BIN)/python -m anabranch.deploy.local $(UP_ARGS)

.PHONY: test
test: $(INSTALLED) ## Run the tests, on a Kafka that they start themselves
	@$(BIN)/pytest --ignore=tests/chaos --ignore=tests/performance $(PYTEST_ARGS)

.PHONY: chaos
chaos: $(INSTALLED) ## Run the long kill tests
	@$(BIN)/pytest tests/chaos --ignore=tests/chaos/test_alerts.py $(PYTEST_ARGS)

.PHONY: fuzz
fuzz: $(INSTALLED) ## Draw what nobody has sent yet, for an hour (FUZZ_MINUTES=60 FUZZ_SEED=0 FUZZ_TARGETS=bodies,inbox)
	@$(BIN)/python -m tests.fuzz

.PHONY: hostile
hostile: $(INSTALLED) ## Attack a running stack for ten minutes (HOSTILE_MINUTES=10 HOSTILE_SEED=0)
	@$(BIN)/python -m tests.hostile

.PHONY: schemathesis
schemathesis: $(INSTALLED) ## Draw requests from the OpenAPI document for a whole stack (SCHEMATHESIS_EXAMPLES=500)
	@$(BIN)/python -m tests.contract

.PHONY: mutants-security
mutants-security: $(INSTALLED) ## Take out each guard against strangers, and see a test go red for it
	@$(BIN)/python -m tests.mutants

.PHONY: bench
bench: $(INSTALLED) ## Measure throughput and latency against the floor
	@$(BIN)/python -m tests.performance.bench

.PHONY: alerts
alerts: $(INSTALLED) ## Have every alert fire by the fault that it is for, thirty times as fast: nothing else may run beside it
	@deploy/prometheus/install.sh
	@$(BIN)/pytest tests/chaos/test_alerts.py $(PYTEST_ARGS)

.PHONY: quiet-alerts
quiet-alerts: $(INSTALLED) ## Load a stack for ten minutes: no alert fires, series are bounded, every panel has data
	@deploy/prometheus/install.sh
	@$(BIN)/python -m tests.performance.bench observed

.PHONY: check
check: $(INSTALLED) ## Lint, format, types, import contracts, coverage of the core
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@if [ -f tests/coverage_core.py ]; then $(BIN)/python -m tests.coverage_core; fi

.PHONY: tools
tools: $(INSTALLED) ## Build the tools that check the Kubernetes manifests, from their Go modules
	@deploy/k8s/tools.sh

.PHONY: k8s
k8s: $(INSTALLED) ## Try the local overlay on a real Kubernetes that it starts here (TRIAL_ARGS="--rate 5 --seed 0")
	@deploy/k8s/try.sh

.PHONY: clean
clean: ## Remove the environment, the stack's data and the tools' caches
	@rm -rf .venv .anabranch .fuzz .tools dist build htmlcov .coverage*
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED):
	@deploy/local/install.sh $@
