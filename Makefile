# What a person or CI says here. `make` alone lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLD_SDKS := anthropic-0 openai-2
AGENT := tests/openclaw
PEER := bench/peers
ROOMS := automna_proxy routes proxy provisioning metering simulators
CORES := $(shell nproc)
JOBS ?= $(shell expr 1 + $(CORES))
NO_TESTS := 5
ONCE ?=
ROUNDS ?= 1000
SEED ?=
FIGURES ?=
PEERS ?=

.DEFAULT_GOAL := help
.PHONY: help install check test image-test openclaw openclaw-test chaos demo soak bench peers prices lock wheel clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

install: $(VENV)/.installed ## a .venv with the automna-proxy command and the tools

$(VENV)/.installed: requirements-dev.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

.venv-%/.installed: tests/sdk/%.lock
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	touch $@

$(AGENT)/node_modules/.installed: $(AGENT)/package.json $(AGENT)/package-lock.json
	cd $(AGENT) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

$(PEER)/.venv-litellm/.installed: $(PEER)/litellm.lock
	$(PYTHON) -m venv $(PEER)/.venv-litellm
	$(PEER)/.venv-litellm/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $<
	touch $@

$(PEER)/node_modules/.installed: $(PEER)/package.json $(PEER)/package-lock.json
	cd $(PEER) && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

check: install ## ruff, mypy strict, import-linter, the price table up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/build_prices.py --check

test: install $(OLD_SDKS:%=.venv-%/.installed) ## every test but the image's (JOBS=1 for one process)
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)
	$(BIN)/python -m pytest -n $(CORES) -m "heavy and not slow and not image" $(ARGS) || [ $$? -eq $(NO_TESTS) ]

image-test: install ## run the Dockerfile's steps in a folder, and what they make (needs root, no Docker)
	$(BIN)/python -m pytest tests/image -m image $(ARGS)

chaos: install ## kill -9 the server ROUNDS times, in every way in turn (SEED= repeats, FIGURES= takes the counts)
	$(BIN)/python -m tests.chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) $(if $(FIGURES),--figures $(FIGURES))

openclaw: $(AGENT)/node_modules/.installed ## the real agent, the JavaScript SDKs, Playwright and their Node, 0.9 GB (any npm)

openclaw-test: install openclaw ## the real agent against the proxy, with the tests that take minutes
	$(BIN)/python -m pytest $(AGENT) -m openclaw -rP $(ARGS)

demo: install ## see it work: proxy, simulated vendor, a user, streamed requests, the ledger (ONCE=1 ends by itself)
	$(BIN)/automna-proxy demo $(if $(ONCE),--once)

soak: install ## two million mixed requests: nothing lost, nothing grown (ARGS="--requests 100000 --workers 2")
	$(BIN)/python -m tests.soak $(ARGS)

bench: install $(if $(PEERS),peers) ## requests/s, CPU per request, latency, beside nginx (needs nginx, wrk and cc; PEERS=1: and LiteLLM, Portkey)
	$(BIN)/python -m bench $(if $(PEERS),--peers) $(ARGS)

peers: ## the gateways that the benchmark can run beside ours, 1 GB (any npm); one that cannot be installed is left out
	-$(MAKE) --no-print-directory $(PEER)/.venv-litellm/.installed
	-$(MAKE) --no-print-directory $(PEER)/node_modules/.installed

prices: install ## rebuild metering/prices.json from its sources
	$(BIN)/python scripts/build_prices.py

lock: ## resolve the locks anew (needs uv)
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 requirements-build.in -o requirements-build.lock
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 pyproject.toml --extra dev -o requirements-dev.lock
	uv pip compile --quiet --universal --generate-hashes --python-version 3.11 $(PEER)/litellm.in -o $(PEER)/litellm.lock
	for sdk in $(OLD_SDKS); do \
	  uv pip compile --quiet --universal --generate-hashes --python-version 3.11 tests/sdk/$$sdk.in -o tests/sdk/$$sdk.lock || exit; \
	done

wheel: install ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .

clean: ## remove what was built and installed
	rm -rf $(VENV) $(OLD_SDKS:%=.venv-%) $(AGENT)/node_modules $(PEER)/.venv-litellm $(PEER)/node_modules build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
