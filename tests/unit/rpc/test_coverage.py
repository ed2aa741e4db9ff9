"""The coverage page is computed from the protocol, the handlers and what was proven."""

from __future__ import annotations

import importlib
from pathlib import Path

from click.testing import CliRunner
from modal_proto import api_pb2

import homeport
from homeport.node.container_rpc import ContainerDispatcher
from homeport.rpc.accepted import accepted
from homeport.rpc.areas import OTHER, area_of
from homeport.rpc.context import Context
from homeport.rpc.coverage import State, called_by_client, main, page, rows
from homeport.rpc.handlers import HANDLER_CLASSES, NODE_METHODS
from homeport.rpc.methods import check_classes, client_services, handler_names, methods_of

KNOWN = methods_of(client_services())


class Dicts:
    async def DictLen(
        self, request: api_pb2.DictLenRequest, ctx: Context
    ) -> api_pb2.DictLenResponse:
        return api_pb2.DictLenResponse()

    async def DictClear(
        self, request: api_pb2.DictClearRequest, ctx: Context
    ) -> api_pb2.DictLenResponse:
        return api_pb2.DictLenResponse()

    @accepted("nothing to keep alive")
    async def DictHeartbeat(
        self, request: api_pb2.DictHeartbeatRequest, ctx: Context
    ) -> api_pb2.DictLenResponse:
        return api_pb2.DictLenResponse()


def test_every_handler_class_fits_the_protocol() -> None:
    check_classes(HANDLER_CLASSES, KNOWN)
    assert set(KNOWN) >= NODE_METHODS


def test_no_handler_class_is_forgotten() -> None:
    source = Path(homeport.__file__).parent
    modules = [
        importlib.import_module(f"homeport.{file.parent.name}.{file.stem}")
        for file in source.glob("*/*rpc.py")
    ]
    classes = {
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__
    }
    assert {kind for kind in classes if any(handler_names(kind))} == set(HANDLER_CLASSES)


def test_the_node_answers_what_it_is_said_to() -> None:
    node = ContainerDispatcher(None, None)  # type: ignore[arg-type]
    answered = {path.rpartition("/")[2] for path in node._local}
    by_server = {name for kind in HANDLER_CLASSES for name in handler_names(kind)}
    assert answered >= NODE_METHODS
    # Of the others a node does its part, and the server answers who is not in a container.
    assert answered - NODE_METHODS <= by_server


def test_every_rpc_has_an_area() -> None:
    assert [name for name in KNOWN if area_of(name) == OTHER] == []


def test_the_longest_prefix_names_the_area() -> None:
    assert area_of("FunctionCreate") == "Functions"
    assert area_of("FunctionCallCancel") == "Calls"
    assert area_of("SharedVolumeList") == "Network file systems"


def test_states() -> None:
    proven = {"DictLen": ["1.0.5", "1.6.4"], "DictPop": ["1.6.4"]}
    found = {
        row.method: row for row in rows(KNOWN, [Dicts], {"ContainerHello"}, proven, frozenset())
    }
    assert len(found) == len(KNOWN)
    assert found["DictLen"].state is State.PROVEN
    assert found["DictLen"].note == "clients 1.0.5, 1.6.4"
    assert found["DictClear"].state is State.ANSWERS
    assert found["ContainerHello"].state is State.ANSWERS
    assert found["DictHeartbeat"].state is State.ACCEPTED
    assert found["DictHeartbeat"].note == "nothing to keep alive"
    assert found["DictPop"].state is State.MISSING, "recorded once, but there is no handler now"


def test_the_page_has_totals_and_every_rpc() -> None:
    text = page(rows(KNOWN, [Dicts], (), {}, frozenset({"DictPop"})), "1.6.4")
    assert "| Dicts | 12 | 0 | 2 | 1 | 9 | 1 |" in text
    assert f"| **all** | {len(KNOWN)} |" in text
    assert all(f"| {name} |" in text for name in KNOWN)


def test_knows_what_the_client_calls() -> None:
    called = called_by_client(KNOWN)
    assert {"FunctionMap", "DictPop", "AppCreate"} <= called
    assert "AppDeploy" not in called


def test_check_tells_a_stale_page(tmp_path: Path) -> None:
    def run(*arguments: str) -> int:
        return CliRunner().invoke(main, [*arguments, "--root", str(tmp_path)]).exit_code

    assert run("--check") == 1
    assert run() == 0
    assert run("--check") == 0
    file = tmp_path / "docs" / "coverage.md"
    file.write_text(file.read_text().replace("DictPop", "DictPup"))
    assert run("--check") == 1
