"""The setting ``default_runtime``: the same programs in containers of another tool, or none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.programs import Runner
from tests.conformance.harness.server import Server

from homeport.node.leaks import find_leaks

pytestmark = [pytest.mark.newest, pytest.mark.root]


@pytest.fixture(scope="module", params=["runc", "crun"])
def other(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runner]:
    """A client of a server whose containers are this tool's."""
    tool: str = request.param
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    server = Server(tmp_path_factory.mktemp(tool), {"HOMEPORT_DEFAULT_RUNTIME": tool})
    server.start()
    try:
        yield Runner(server, tmp_path_factory.mktemp(f"{tool}-client"))
    finally:
        server.stop()
    assert find_leaks(server.home) == []


def test_a_function_runs(other: Runner, client: Client) -> None:
    done = other.modal_run(client, "hello.py").succeeded()
    assert "the square is 1764" in done.stdout
    assert "This line comes from a container" in done.output
    assert (other.server.home / "node/runtime/oci").is_dir(), "another tool did it"


def test_a_runtime_that_cannot_work_is_not_replaced(tmp_path: Path) -> None:
    server = Server(tmp_path, {"HOMEPORT_DEFAULT_RUNTIME": "kata"})
    with pytest.raises(AssertionError, match="no runtime 'kata'; this version has bubblewrap"):
        server.start()
