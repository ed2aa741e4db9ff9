"""Finding GPUs and getting them into containers, with specifications and drivers made up here."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conformance.harness.gpus import FakeGpus

from homeport.kernel.errors import UnavailableError
from homeport.node import probe
from homeport.node.gpus.cdi import CdiError, parse, read_folders
from homeport.node.gpus.devices import NodeGpus, check_runtime
from homeport.node.gpus.inventory import GpuOptions, Inventory, combine, nvidia_cards
from homeport.node.gpus.libraries import PLACE, links, missed
from homeport.node.gpus.models import override, type_of
from homeport.node.gpus.nvml import NvmlDevice


@pytest.mark.parametrize(
    ("name", "memory_mb", "kind"),
    [
        ("Tesla T4", 15_360, "T4"),
        ("NVIDIA L4", 23_034, "L4"),
        ("NVIDIA A10G", 23_028, "A10G"),
        ("NVIDIA A10", 23_028, "A10"),
        ("NVIDIA L40S", 46_068, "L40S"),
        ("A100-SXM4-40GB", 40_536, "A100-40GB"),
        ("NVIDIA A100-PCIE-40GB", 40_960, "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", 81_920, "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", 81_920, "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", 81_559, "H100"),
        ("NVIDIA H200", 143_771, "H200"),
        ("NVIDIA B200", 183_359, "B200"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 97_887, "RTX-PRO-6000"),
        ("NVIDIA RTX A6000", 49_140, "RTX-A6000"),
        ("NVIDIA RTX 6000 Ada Generation", 49_140, "RTX-6000-ADA-GENERATION"),
        ("NVIDIA GeForce RTX 4090", 24_564, "RTX-4090"),
        ("", 0, ""),
    ],
)
def test_types_of_models(name: str, memory_mb: int, kind: str) -> None:
    assert type_of(name, memory_mb) == kind


def test_types_can_be_named() -> None:
    types = {"NVIDIA GeForce RTX 4090": "a10", "GPU-1": "T4", "7": "L4"}
    assert override(types, "GPU-9", "0", "nvidia geforce rtx-4090") == "A10"
    assert override(types, "GPU-1", "7", "") == "T4"
    assert override(types, "GPU-9", "7", "") == "L4"
    assert override(types, "GPU-9", "", "Tesla T4") == ""


# ── specifications ──────────────────────────────────────────────────────────────────────────────

SPECIFICATION: dict[str, Any] = {
    "cdiVersion": "0.5.0",
    "kind": "nvidia.com/gpu",
    "devices": [
        {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}},
        {"name": 1, "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1"}]}},
    ],
    "containerEdits": {
        "env": ["NVIDIA_VISIBLE_DEVICES=void"],
        "deviceNodes": [{"path": "/dev/nvidiactl", "permissions": "rwm", "fileMode": 438}],
        "mounts": [
            {"hostPath": "/lib/libx.so", "containerPath": "/lib/libx.so", "options": ["ro"]}
        ],
        "hooks": [{"hookName": "createContainer", "path": "/usr/bin/hook", "args": ["hook", "x"]}],
    },
}


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_a_specification_is_read(form: str) -> None:
    text = json.dumps(SPECIFICATION) if form == "json" else yaml.safe_dump(SPECIFICATION)
    first, second = parse(f"nvidia.{form}", text.encode())
    assert (first.qualified, second.qualified) == ("nvidia.com/gpu=0", "nvidia.com/gpu=1")
    assert first.common.device_nodes[0].permissions == "rwm"
    assert first.nodes == {"/dev/nvidia0"}
    assert missed(first.hooks) == ["x"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "not a CDI specification"),
        (b"[]", "not a CDI specification"),
        (b'{"kind": "nvidia.com/gpu"}', "cdiVersion"),
        (json.dumps({**SPECIFICATION, "cdiVersion": "2.0.0"}).encode(), r"cdiVersion 2\.0\.0"),
        (json.dumps({**SPECIFICATION, "devices": [{}]}).encode(), "name"),
    ],
)
def test_what_is_no_specification_is_said(data: bytes, said: str) -> None:
    with pytest.raises(CdiError, match=said):
        parse("nvidia.json", data)


def test_other_classes_of_devices_are_none_of_ours() -> None:
    assert parse("nic.json", json.dumps({**SPECIFICATION, "kind": "x.com/nic"}).encode()) == []


def test_later_folders_win_and_twice_in_one_is_a_mistake(tmp_path: Path) -> None:
    one, two = tmp_path / "etc", tmp_path / "run"
    one.mkdir()
    two.mkdir()
    (one / "nvidia.yaml").write_text(yaml.safe_dump(SPECIFICATION))
    (one / "broken.json").write_text("{")
    (one / "notes.txt").write_text("{")
    newer = {**SPECIFICATION, "cdiVersion": "1.0.0", "containerEdits": {}}
    (two / "nvidia.json").write_text(json.dumps(newer))
    found = read_folders([one, two, tmp_path / "absent"])
    device = found.find("nvidia.com/gpu", "GPU-x", "0")
    assert device is not None
    assert device.common.env == []
    assert len(found.problems) == 1
    assert "broken.json" in found.problems[0]

    (two / "copy.json").write_text(json.dumps(newer))
    found = read_folders([two])
    assert found.find("nvidia.com/gpu", "0") is None
    assert "delete one of them" in found.problems[0]


# ── what a machine has ──────────────────────────────────────────────────────────────────────────


def offered(
    folder: Path, driver: list[NvmlDevice] | str, cards: int = 0, **types: str
) -> Inventory:
    return combine(driver, read_folders([folder]), GpuOptions([folder], types), cards)


def test_driver_and_specification_make_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "nvidia.json").write_text(json.dumps(SPECIFICATION))
    driver = [
        NvmlDevice(0, "GPU-a", "Tesla T4", 15_360),
        NvmlDevice(1, "GPU-b", "NVIDIA H100 80GB HBM3", 81_559, is_split=True),
        NvmlDevice(2, "GPU-c", "NVIDIA L4", 23_034),
    ]
    found = offered(tmp_path, driver)
    assert [(gpu.uuid, gpu.type) for gpu in found.gpus] == [("GPU-a", "T4")]
    split, without = found.problems
    assert "MIG" in split.found
    assert "-mig 0" in split.fix
    assert "GPU-c" in without.found
    assert "nvidia-ctk cdi generate" in without.fix


def test_a_card_without_a_driver_is_said(tmp_path: Path) -> None:
    found = offered(tmp_path, "NVML Shared Library Not Found", cards=2)
    assert found.gpus == ()
    assert "driver does not answer" in found.problems[0].found
    assert offered(tmp_path, "NVML Shared Library Not Found").problems == ()


def test_without_a_driver_the_type_is_a_setting(tmp_path: Path) -> None:
    nodes = [{"path": f"/dev/dri/renderD{n}"} for n in range(2)]
    devices = [{"name": str(n), "containerEdits": {"deviceNodes": [nodes[n]]}} for n in range(2)]
    every = {"name": "all", "containerEdits": {"deviceNodes": nodes}}
    again = {"name": "0x1f", "containerEdits": {"deviceNodes": [nodes[0]]}}
    amd = {"cdiVersion": "0.6.0", "kind": "amd.com/gpu", "devices": [*devices, every, again]}
    (tmp_path / "amd.json").write_text(json.dumps(amd))
    found = offered(tmp_path, "no library", **{"1": "MI300X"})
    assert [(gpu.uuid, gpu.type) for gpu in found.gpus] == [
        ("amd.com/gpu=0", "AMD"),
        ("amd.com/gpu=1", "MI300X"),
    ]
    assert "gpu_types" in found.problems[0].fix


def test_cards_are_counted_on_the_bus(tmp_path: Path) -> None:
    for name, vendor, kind in (
        ("a", "0x10de", "0x030200"),
        ("b", "0x10de", "0x040300"),
        ("c", "0x8086", "0x030000"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    assert nvidia_cards(tmp_path) == 1


def test_the_doctor_lists_them_and_says_what_is_in_the_way(tmp_path: Path) -> None:
    hooks = SPECIFICATION["containerEdits"]["hooks"]
    (tmp_path / "nvidia.json").write_text(json.dumps(SPECIFICATION))
    driver = [NvmlDevice(0, "GPU-a", "Tesla T4", 15_360), NvmlDevice(9, "GPU-b", "Tesla T4", 1)]
    found = offered(tmp_path, driver)
    listed, missing, unrun = probe.gpus(found, "")
    assert (listed.state, listed.found) == ("ok", "0: Tesla T4 as T4")
    assert (missing.state, missing.found.split()[-1]) == ("warning", str(tmp_path))
    assert "nvidia-ctk" in missing.fix
    assert hooks[0]["args"][1] in unrun.found
    assert "runc or crun" in unrun.fix
    assert probe.gpus(found, "runc") == [listed, missing]
    (nothing,) = probe.gpus(Inventory(), "")
    assert (nothing.state, nothing.found) == ("ok", "none")


# ── into containers ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def fake(tmp_path: Path) -> FakeGpus:
    return FakeGpus(tmp_path / "machine", ["Tesla T4", "NVIDIA L4"])


def test_a_library_is_found_by_the_name_in_it(fake: FakeGpus) -> None:
    found = links(fake.inventory().devices["GPU-fake-0"].common)
    library = f"{fake.inside}/libfakegpu.so.1.2.3"
    assert found["libfakegpu.so.1"] == library, "its soname"
    assert found["libfakegpu.so"] == library, "a link that a hook would have made"


def test_what_a_container_with_a_gpu_gets(fake: FakeGpus, tmp_path: Path) -> None:
    gpus = NodeGpus(fake.inventory(), tmp_path / "gpus")
    gpus.ready()
    given = {"LD_LIBRARY_PATH": "/own"}
    env = gpus.environment(["GPU-fake-1"], given, "bubblewrap")
    assert env["NVIDIA_VISIBLE_DEVICES"] == "GPU-fake-1"
    assert env["LD_LIBRARY_PATH"] == f"/own:{PLACE}"
    assert env["FAKE_GPU"] == "1"
    changes = gpus.changes(["GPU-fake-1"], "bubblewrap")
    assert [device.target for device in changes.devices] == ["/dev/fakegpuctl", "/dev/fakegpu1"]
    assert changes.hooks == ()
    assert changes.binds[-1].target == PLACE
    assert (changes.binds[-1].source / "libfakegpu.so.1").is_symlink()


def test_a_runtime_with_hooks_gets_those(fake: FakeGpus, tmp_path: Path) -> None:
    gpus = NodeGpus(fake.inventory(), tmp_path / "gpus")
    gpus.ready()
    assert "LD_LIBRARY_PATH" not in gpus.environment(["GPU-fake-0"], {}, "runc")
    changes = gpus.changes(["GPU-fake-0", "GPU-fake-1"], "crun")
    assert [hook.stage for hook in changes.hooks] == ["createContainer"]
    assert [device.target for device in changes.devices] == [
        "/dev/fakegpuctl",
        "/dev/fakegpu0",
        "/dev/fakegpu1",
    ]


def test_gvisor_is_refused_with_a_sentence() -> None:
    with pytest.raises(UnavailableError, match="sandbox_runtime"):
        check_runtime("runsc")
    check_runtime("bubblewrap")


def test_a_driver_that_was_changed_is_said(fake: FakeGpus, tmp_path: Path) -> None:
    gpus = NodeGpus(fake.inventory(), tmp_path / "gpus")
    fake.library.unlink()
    with pytest.raises(UnavailableError, match="nvidia-ctk cdi generate"):
        gpus.changes(["GPU-fake-0"], "runc")
    fake.device(0).unlink()
    fake.library.touch()
    with pytest.raises(UnavailableError, match="nvidia-smi"):
        gpus.changes(["GPU-fake-0"], "runc")


def test_a_gpu_is_held_by_one_container_at_a_time(fake: FakeGpus, tmp_path: Path) -> None:
    async def scenario() -> None:
        gpus = NodeGpus(fake.inventory(), tmp_path / "gpus")
        await gpus.hold(["GPU-fake-0"])
        both = asyncio.create_task(gpus.hold(["GPU-fake-1", "GPU-fake-0"]))
        gives_up = asyncio.create_task(gpus.hold(["GPU-fake-0"]))
        await asyncio.sleep(0)
        assert not both.done()
        gives_up.cancel()
        gpus.release(["GPU-fake-0"])
        await both
        gpus.release(["GPU-fake-1", "GPU-fake-0"])
        await gpus.hold(["GPU-fake-0"])
        with pytest.raises(UnavailableError, match="no GPU GPU-gone"):
            await gpus.hold(["GPU-gone"])

    asyncio.run(scenario())


def test_the_driver_is_asked_through_its_own_library(tmp_path: Path) -> None:
    """The kept bindings, with a library in place of the driver's."""
    machine = FakeGpus(tmp_path, ["Tesla T4", "NVIDIA A100-SXM4-80GB"])
    code = "from homeport.node.gpus.nvml import read_devices; print(*read_devices(), sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **machine.environment()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        repr(NvmlDevice(0, "GPU-fake-0", "Tesla T4", 16_384)),
        repr(NvmlDevice(1, "GPU-fake-1", "NVIDIA A100-SXM4-80GB", 81_920)),
    ]
