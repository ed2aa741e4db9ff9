"""The examples do what they say."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Completed, Runner

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(runner: Runner, client: Client, name: str, *arguments: str) -> Completed:
    return runner.modal_run(client, str(EXAMPLES / name), *arguments).succeeded()


def test_hello(runner: Runner, client: Client) -> None:
    done = run(runner, client, "hello.py", "--x", "5")
    assert "one call: 25" in done.stdout
    assert f"in parallel: {sum(n * n for n in range(100))}" in done.stdout
    assert "in a container, Python 3.11" in done.output
    assert "Traceback" not in done.output  # of containers that start while the app ends


def test_batch_map(runner: Runner, client: Client) -> None:
    done = run(runner, client, "batch_map.py", "--limit", "200000", "--slices", "8")
    assert "There are 17,984 primes below 200,000" in done.stdout


def test_semantic_search(runner: Runner, client: Client) -> None:
    done = run(runner, client, "semantic_search.py")
    assert "shutil.rmtree" in done.stdout
    assert "statistics.median" in done.stdout
    assert re.search(r"embedding +\d+\.\d\d s +\([\d,]+ texts/s\)", done.stdout)


def test_semantic_search_for_a_question(runner: Runner, client: Client) -> None:
    done = run(runner, client, "semantic_search.py", "--query", "sort a list of numbers")
    assert "» sort a list of numbers" in done.stdout
