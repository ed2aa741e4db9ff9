# Works on a machine with Python 3.11+, make and apt; everything else is made by scripts/setup.
.DEFAULT_GOAL := help
BIN := .venv/bin
PYTHON_SOURCES := src tests benchmarks examples

.PHONY: help setup demo test check format conformance chaos bench leaks clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup:  ## what is missing: .venv from uv.lock, tools for container images
	@scripts/setup containers

demo: setup  ## start Homeport, run a real job on it, stop it
	@scripts/demo

# What every change must pass; `make conformance` runs all suites with all clients, and tests/chaos
# kills processes under load.
TESTS := tests/unit tests/contract tests/sim \
	tests/conformance/test_hello.py tests/conformance/test_calls.py \
	tests/conformance/test_classes.py tests/conformance/test_deploy.py \
	tests/conformance/test_entrypoints.py tests/conformance/test_generators.py \
	tests/conformance/test_failures.py tests/conformance/test_nested.py \
	tests/conformance/test_dicts.py tests/conformance/test_queues.py \
	tests/conformance/test_images.py tests/conformance/test_images_rebuilt.py tests/conformance/test_image_volumes.py \
	tests/conformance/test_images_recovery.py \
	tests/conformance/test_examples.py tests/conformance/test_scaling.py \
	tests/conformance/test_lifecycle.py tests/conformance/test_stress.py \
	tests/conformance/test_recovery.py tests/conformance/test_volumes.py \
	tests/conformance/test_volumes_mounted.py tests/conformance/test_network_file_systems.py \
	tests/conformance/test_buckets.py tests/conformance/test_workspace.py \
	tests/conformance/test_lost_answers.py tests/conformance/test_ephemeral.py \
	tests/conformance/test_schedules.py tests/conformance/test_serve.py \
	tests/conformance/test_queue_crowd.py tests/conformance/test_web.py \
	tests/conformance/test_servers.py tests/conformance/test_sandboxes.py \
	tests/conformance/test_sandboxes_recovery.py tests/conformance/test_exec.py \
	tests/conformance/test_escapes.py tests/chaos

test:  ## the tests that every change must pass
	@scripts/setup containers tests
	$(BIN)/python -m pytest $(TESTS)

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

chaos:  ## half an hour (HOMEPORT_CHAOS_S) of kills, pauses and cut connections under load
	@scripts/setup containers tests
	HOMEPORT_CHAOS_S=$${HOMEPORT_CHAOS_S:-1800} $(BIN)/python -m pytest -s tests/chaos/test_chaos.py

bench: setup  ## measure, with ratios to peers in the same run
	@scripts/setup bench
	$(BIN)/uv sync --quiet --frozen --group bench
	$(BIN)/python benchmarks/calls.py
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
