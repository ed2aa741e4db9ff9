"""Rules about the source that the import linter cannot say."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "homeport"
PROTOBUF = {"modal_proto", "google"}
EDGES = ("rpc.py", "wire.py")
"""Protobuf types stop at the modules of a feature whose names end so."""
SPEAKS_PROTOBUF = {"rpc", "transport", "node", "main.py"}
"""Parts that speak the client's protocol themselves."""
NODE_MAY_IMPORT = {"kernel", "link", "transport", "node", "pythons", "settings"}
CLI_MAY_IMPORT = (
    "homeport.cli",
    "homeport.kernel",
    "homeport.settings",
    "homeport.storage.standing",
    "homeport.workspace.credentials",
    # `homeport image export` and `import` work on the layers of this machine.
    "homeport.images.upkeep",
    "homeport.node.builder.errors",
    "homeport.node.builder.oci",
    "homeport.node.caches",
    "homeport.node.layers",
)


def modules(*under: str) -> list[Path]:
    return sorted(path for name in under or (".",) for path in (SOURCE / name).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Absolute names of what a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def own_parts(path: Path) -> set[str]:
    """The parts of Homeport that a module imports."""
    names = (name.split(".") for name in imports(path))
    parts = {name[1] for name in names if name[0] == "homeport" and len(name) > 1}
    return parts - {"__version__"}


def test_protobuf_types_stop_at_the_edge() -> None:
    strangers = [
        str(path.relative_to(SOURCE))
        for path in modules()
        if path.relative_to(SOURCE).parts[0] not in SPEAKS_PROTOBUF
        and not path.name.endswith(EDGES)
        and PROTOBUF & {name.split(".")[0] for name in imports(path)}
    ]
    assert strangers == []


def test_a_node_needs_nothing_of_the_server() -> None:
    found = {path.name: own_parts(path) - NODE_MAY_IMPORT for path in modules("node")}
    assert {name: parts for name, parts in found.items() if parts} == {}


def test_the_cli_only_launches_the_rest() -> None:
    strangers = [
        f"{path.name} imports {name}"
        for path in modules("cli")
        for name in imports(path)
        if name.count(".") > 1
        and name.startswith("homeport.")
        and not name.startswith(CLI_MAY_IMPORT)
    ]
    assert strangers == []


def test_tables_are_touched_by_their_store_alone() -> None:
    """A feature's ``store`` module is imported by its own folder, and by the wiring."""
    strangers = [
        f"{path.relative_to(SOURCE)} imports {name}"
        for path in modules()
        for name in imports(path)
        if name.endswith(".store")
        and name.split(".")[1] != path.relative_to(SOURCE).parts[0]
        and path.name not in ("main.py", "wiring.py")
        and name.startswith("homeport.")
    ]
    assert strangers == []


def test_timeouts_do_not_swallow_cancellations() -> None:
    """``asyncio.wait_for`` of Python 3.11 loses a cancellation that meets a finished awaitable."""
    offenders = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if "asyncio.wait_for(" in path.read_text()
    ]
    assert offenders == []
