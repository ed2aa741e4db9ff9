# Works on a machine with Python 3.11+, make and apt; everything else is made by scripts/setup.
.DEFAULT_GOAL := help
BIN := .venv/bin
PYTHON_SOURCES := src tests benchmarks examples

.PHONY: help setup demo test check format conformance chaos soak corpus bench leaks clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## what is missing: .venv from uv.lock, tools for container images
	@scripts/setup containers

demo: setup  ## start Homeport, run a real job on it, stop it
	@scripts/demo

# What every change must pass; `make conformance` runs all suites with all clients, and tests/chaos
# kills processes under load.
CONFORMANCE := \
	hello calls call_history classes deploy entrypoints generators failures nested examples scaling \
	lifecycle stress recovery lost_answers ephemeral schedules serve images images_registry images_rebuilt \
	images_agree image_volumes images_recovery dicts queues queue_crowd storage_errors volumes volumes_mounted \
	network_file_systems buckets workspace lookups secrets web servers sandboxes sandboxes_recovery sandbox_images \
	sidecars gvisor memory_snapshots exec sandbox_odd shells escapes \
	egress tunnels acme templates gpus object_store postgresql standby_recovery javascript
TESTS := tests/unit tests/contract tests/sim \
	$(CONFORMANCE:%=tests/conformance/test_%.py) tests/chaos

test:  ## the tests that every change must pass
	@scripts/setup containers tests
	@scripts/test $(TESTS)

check:  ## format, lint, types, import contracts, coverage page, lock file, known vulnerabilities
	@scripts/setup
	$(BIN)/ruff format --check $(PYTHON_SOURCES)
	$(BIN)/ruff check $(PYTHON_SOURCES)
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python -m homeport.rpc.coverage --check
	$(BIN)/uv lock --check --quiet
	@scripts/audit

format:  ## format and mend what can be mended
	@scripts/setup
	$(BIN)/ruff check --fix-only $(PYTHON_SOURCES)
	$(BIN)/ruff format $(PYTHON_SOURCES)

conformance: setup  ## official clients, every supported version, against a real server
	$(BIN)/python -m pytest tests/conformance --all-clients --record
	$(BIN)/python -m homeport.rpc.coverage

.PHONY: browser
browser:  ## web functions in a real browser: installs Chromium (some 300 MB)
	@scripts/setup containers tests browser
	$(BIN)/python -m pytest tests/conformance/test_browser.py

chaos:  ## half an hour (HOMEPORT_CHAOS_S) of kills, pauses and cut connections under load
	@scripts/setup containers tests
	HOMEPORT_CHAOS_S=$${HOMEPORT_CHAOS_S:-1800} $(BIN)/python -m pytest -s tests/chaos/test_chaos.py tests/chaos/test_web_load.py

soak:  ## 100,000 calls, 2,000 sandboxes, 500 images (SOAK='--calls N …'): all is as it was after it
	@scripts/setup containers tests
	PYTHONPATH=. $(BIN)/python tests/chaos/soak.py $(SOAK)

corpus: setup  ## published packages that use sandboxes, unmodified, against a real server
	@scripts/setup containers tests
	$(BIN)/python -m pytest -s tests/corpus

bench: setup  ## measure, with ratios to peers in the same run
	@scripts/setup bench
	$(BIN)/uv sync --quiet --frozen --group bench
	$(BIN)/python benchmarks/calls.py
	$(BIN)/python benchmarks/sandboxes.py
	$(BIN)/python benchmarks/images.py
	$(BIN)/python benchmarks/storage_ops.py
	$(BIN)/python benchmarks/web.py
	$(BIN)/python benchmarks/durability.py
	$(BIN)/python benchmarks/sim.py

leaks:  ## what earlier runs left on this machine (must be nothing)
	@scripts/setup
	$(BIN)/python -m homeport.node.leaks

clean:  ## remove what the above made, but for .venv
	@if [ -x $(BIN)/homeport ] && [ -d .cache/demo ]; then $(BIN)/homeport down --home .cache/demo; fi
	rm -rf .cache build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
