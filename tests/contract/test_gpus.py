"""GPUs in containers of every runtime: those that were given, and no others.

There is none in the machine: the device files are real ones of another driver, the library is built
here.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest
from tests.conformance.harness.gpus import FakeGpus

from homeport.node.gpus.devices import RUN_HOOKS, NodeGpus
from homeport.node.gpus.libraries import PLACE
from homeport.node.leaks import find_leaks

from .containers import Box, Result, make_layer, open_box

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox-static"),
]

FUSE = (10, 229)
"""Not among the devices that every container has: it works by what the GPU's specification says."""
LOOK = (
    "ls /dev | grep fakegpu | sort; "
    "if (exec 3</dev/fakegpu1) 2>/dev/null; then echo opened; fi; "
    "test -s /usr/lib/of-the-driver/libfakegpu.so.1.2.3 && echo library; "
    "echo x 2>/dev/null >/usr/lib/of-the-driver/libfakegpu.so.1.2.3 || echo read-only; "
    "id -G"
)


@pytest.fixture(params=["bubblewrap", "runc", "crun"])
def tool(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name != "bubblewrap" and shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


async def look(box: Box, gpus: NodeGpus, *uuids: str) -> Result:
    tool = box.runtime.name
    changes = gpus.changes(uuids, tool)
    return await box.sh(
        LOOK,
        env=gpus.environment(uuids, {}, tool),
        binds=changes.binds,
        tmpfs=changes.tmpfs,
        devices=changes.devices,
        hooks=changes.hooks,
        groups=(4321,),
    )


def test_the_given_gpu_is_there_and_no_other(tool: str, tmp_path: Path) -> None:
    machine = FakeGpus(tmp_path / "machine", ["Tesla T4", "NVIDIA L4"], number=FUSE)
    gpus = NodeGpus(machine.inventory(), tmp_path / "gpus")
    gpus.ready()
    layer = make_layer(tmp_path / "image")

    async def check() -> None:
        async with open_box(tool, tmp_path, layer) as box:
            found = await look(box, gpus, "GPU-fake-1")
            assert found.output.split() == [
                "fakegpu1", "fakegpuctl", "opened", "library", "read-only", "0", "4321",
            ]  # fmt: skip
            assert list(found.upper.rglob("*fakegpu*")) == []
            both = await look(box, gpus, "GPU-fake-0", "GPU-fake-1")
            assert both.output.split()[:3] == ["fakegpu0", "fakegpu1", "fakegpuctl"]
            none = await box.sh(
                "ls /dev | grep fakegpu; test -s /usr/lib/of-the-driver/* || echo none;"
                "mknod /made c 10 229 && (exec 3</made) 2>/dev/null || echo refused"
            )
            assert none.output.split() == ["none", "refused"]

    asyncio.run(check())
    assert find_leaks(tmp_path) == []
    if tool in RUN_HOOKS:
        assert machine.hook_log.read_text().count("create-symlinks --link") == 2


def test_the_library_has_its_names_where_no_hook_makes_them(tmp_path: Path) -> None:
    machine = FakeGpus(tmp_path / "machine", ["Tesla T4"])
    gpus = NodeGpus(machine.inventory(), tmp_path / "gpus")
    gpus.ready()
    layer = make_layer(tmp_path / "image")

    async def check() -> None:
        async with open_box("bubblewrap", tmp_path, layer) as box:
            changes = gpus.changes(["GPU-fake-0"], "bubblewrap")
            script = (
                f"for name in libfakegpu.so libfakegpu.so.1; do readlink -f {PLACE}/$name; done"
            )
            found = await box.sh(script, binds=changes.binds, devices=changes.devices)
            assert found.output.split() == ["/usr/lib/of-the-driver/libfakegpu.so.1.2.3"] * 2

    asyncio.run(check())
