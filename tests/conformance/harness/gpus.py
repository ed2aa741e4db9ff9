"""A machine that seems to have GPUs of NVIDIA: a driver library and a CDI specification of our own.

Nothing of Homeport is replaced. The driver's library is one that is built here and answers as NVML
does (found by ``LD_LIBRARY_PATH``); the specification names device files that are real character
devices, and a library.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from homeport.node.gpus.cdi import read_folders
from homeport.node.gpus.inventory import GpuOptions, Inventory, combine
from homeport.node.gpus.nvml import NvmlDevice

ZERO = (1, 5)
"""Numbers of /dev/zero: a device that can be read anywhere."""
MEMORY_MB = {"80GB": 81_920, "": 16_384}

_NVML = r"""
#include <stdio.h>
#include <string.h>
static const char *names[] = {%(names)s};
static const unsigned long long memories[] = {%(memories)s};
int nvmlInit_v2(void) { return 0; }
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "made up"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = %(count)d; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
  *handle = (void *)(unsigned long)(index + 1);
  return 0;
}
static unsigned long which(void *handle) { return (unsigned long)handle - 1; }
int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) {
  snprintf(text, size, "GPU-fake-%%lu", which(handle));
  return 0;
}
int nvmlDeviceGetName(void *handle, char *text, unsigned size) {
  snprintf(text, size, "%%s", names[which(handle)]);
  return 0;
}
struct memory { unsigned long long total, free, used; };
int nvmlDeviceGetMemoryInfo(void *handle, struct memory *memory) {
  memset(memory, 0, sizeof *memory);
  memory->total = memories[which(handle)] << 20;
  return 0;
}
"""


class FakeGpus:
    """GPUs of these models, ``GPU-fake-0`` and so on; everything about them is in ``folder``.

    In containers they are ``/dev/fakegpu<index>``, with ``/dev/fakegpuctl`` beside any of them and
    ``libfakegpu.so.1``, whose function ``answer`` gives 42, in a folder where no program looks.
    """

    inside = "/usr/lib/of-the-driver"

    def __init__(
        self, folder: Path, names: Sequence[str], *, number: tuple[int, int] = ZERO
    ) -> None:
        self.names = names
        self.cdi = folder / "cdi"
        self.hook_log = folder / "hook.log"
        self.library = folder / "lib" / "libfakegpu.so.1.2.3"
        self._devices = folder / "dev"
        self._driver = folder / "driver"
        for each in (self.cdi, self.library.parent, self._devices, self._driver):
            each.mkdir(parents=True)
        self._make_device("ctl", number)
        for index in range(len(names)):
            self._make_device(str(index), number)
        _compile(self.library, "int answer(void) { return 42; }", "-Wl,-soname,libfakegpu.so.1")
        memories = [self._memory_mb(name) for name in names]
        source = _NVML % {
            "names": ", ".join(f'"{name}"' for name in names),
            "memories": ", ".join(map(str, memories)),
            "count": len(names),
        }
        _compile(self._driver / "libnvidia-ml.so.1", source)
        hook = folder / "hook"
        # reads what it is told about the container, as hooks do: crun takes it ill if nobody does
        hook.write_text(f'#!/bin/sh\ncat >/dev/null\necho "$@" >> {self.hook_log}\n')
        hook.chmod(0o755)
        (self.cdi / "nvidia.yaml").write_text(yaml.safe_dump(self._specification(hook)))

    def device(self, index: int) -> Path:
        """The device file on the host."""
        return self._devices / f"fakegpu{index}"

    def environment(self) -> dict[str, str]:
        """What makes Homeport see them."""
        return {
            "HOMEPORT_GPU_CDI_FOLDERS": str(self.cdi),
            "LD_LIBRARY_PATH": str(self._driver),
        }

    def inventory(self) -> Inventory:
        """What Homeport finds."""
        driver = [
            NvmlDevice(index, f"GPU-fake-{index}", name, self._memory_mb(name))
            for index, name in enumerate(self.names)
        ]
        return combine(driver, read_folders([self.cdi]), GpuOptions([self.cdi]), 0)

    @staticmethod
    def _memory_mb(name: str) -> int:
        return next(size for word, size in MEMORY_MB.items() if word in name)

    def _make_device(self, name: str, number: tuple[int, int]) -> None:
        path = self._devices / f"fakegpu{name}"
        if os.geteuid() == 0:
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(*number))
            path.chmod(0o666)
        else:
            path.symlink_to("/dev/zero")

    def _specification(self, hook: Path) -> object:
        def node(name: str) -> object:
            return {
                "path": f"/dev/fakegpu{name}",
                "hostPath": str(self._devices / f"fakegpu{name}"),
            }

        target = f"{self.inside}/{self.library.name}"
        link = f"{self.library.name}::{self.inside}/libfakegpu.so"
        return {
            "cdiVersion": "0.6.0",
            "kind": "nvidia.com/gpu",
            "devices": [
                {
                    "name": str(index),
                    "containerEdits": {
                        "env": [f"FAKE_GPU={index}"],
                        "deviceNodes": [node(str(index))],
                    },
                }
                for index in range(len(self.names))
            ],
            "containerEdits": {
                "env": ["NVIDIA_VISIBLE_DEVICES=void"],
                "deviceNodes": [node("ctl")],
                "mounts": [
                    {
                        "hostPath": str(self.library),
                        "containerPath": target,
                        "options": ["ro", "nosuid", "nodev", "bind"],
                    }
                ],
                "hooks": [
                    {
                        "hookName": "createContainer",
                        "path": str(hook),
                        "args": ["hook", "create-symlinks", "--link", link],
                    }
                ],
            },
        }


def _compile(target: Path, source: str, *options: str) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("a driver is made up with a C compiler, and there is none")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-w", "-x", "c", *options, "-o", str(target), "-"],
        input=source,
        text=True,
        check=True,
    )
