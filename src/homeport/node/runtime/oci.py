"""Containers by an OCI runtime, ``runc`` or ``crun``: a bundle's ``config.json`` for each."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from homeport.node.cgroups import INNER_GROUP, OCI_SUFFIX, CgroupProvider
from homeport.node.network import NetworkProvider
from homeport.node.runtime.arguments import (
    MASKED,
    READ_ONLY,
    mount_plan,
    working_directory,
)
from homeport.node.runtime.base import StagedRuntime
from homeport.node.runtime.bundle import bundle_config
from homeport.node.runtime.launch import (
    FIRST_FREE_FD,
    INIT_PATH,
    STATUS_FD,
    Invocation,
    Keep,
    Launch,
    init_arguments,
)
from homeport.node.runtime.port import ContainerSpec, RuntimeUnavailableError
from homeport.node.runtime.records import remove_tree
from homeport.node.runtime.seccomp import DENIED, DENIED_FAMILIES, NAMESPACE_FLAGS
from homeport.node.runtime.users import User, resolve_user

_CLEAN_TIMEOUT_S: Final = 30


class OciRuntime(StagedRuntime):
    """``binary`` is ``runc`` or ``crun``; both do what ``BubblewrapRuntime`` does, a bit slower.

    Limits are our own control groups, as everywhere. Devices are kept out twice: by mounts that
    allow none but for single files of ``/dev`` (crun mounts the root anew without that), and by
    the tool's own control group.
    """

    def __init__(
        self, binary: str, run_dir: Path, network: NetworkProvider, cgroups: CgroupProvider
    ) -> None:
        path = shutil.which(binary)
        if path is None:
            raise RuntimeUnavailableError(
                f"there is no {binary} program; install it: apt-get install {binary}"
            )
        self._binary = path
        self._name = binary
        self._state = run_dir.absolute() / "oci"
        if not cgroups.available():
            raise RuntimeUnavailableError(
                f"{binary} needs control groups, and there are none in /sys/fs/cgroup: mount them "
                "(mount -t cgroup2 none /sys/fs/cgroup) or choose the runtime bubblewrap"
            )
        layout = cgroups.layout
        self._unified = str(layout.unified) if layout.version == "hybrid" else None
        super().__init__(run_dir, network, cgroups)
        self._state.mkdir(mode=0o700, exist_ok=True)

    @property
    def name(self) -> str:
        return self._name

    async def close(self) -> None:
        await super().close()
        remove_tree(self._state)

    @contextlib.contextmanager
    def invocation(self, launch: Launch, keep: Keep) -> Generator[Invocation]:
        spec = launch.spec
        with (
            self._stage.root(launch.tree) as root,
            self._stage.network(launch.lease.netns_fd),
        ):
            user = launch.user = resolve_user(root, spec.user).within(spec.groups)
            groups = launch.group_fds(FIRST_FREE_FD, keep)
            config = self._config(spec, root, user, groups)
            bundle = launch.directory.path / "bundle"
            bundle.mkdir(mode=0o700)
            (bundle / "config.json").write_text(json.dumps(config))
            preserved = FIRST_FREE_FD - STATUS_FD + len(groups)
            arguments = [*self._options(), "run", "--bundle", str(bundle)]
            arguments += ["--preserve-fds", str(preserved), self._container_name(spec.id)]
            yield Invocation(self._binary, arguments, groups, view=self._view)

    def clean(self, container_id: str) -> None:
        name = self._container_name(container_id)
        if (self._state / name).exists():
            subprocess.run(
                [self._binary, *self._options(), "delete", "--force", name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_CLEAN_TIMEOUT_S,
                check=False,
            )
            remove_tree(self._state / name)
        self._cgroups.remove(f"{container_id}{OCI_SUFFIX}")

    def _options(self) -> list[str]:
        return ["--root", str(self._state)]

    def _container_name(self, container_id: str) -> str:
        return f"{self._token}-{container_id}"

    def _view(self) -> AbstractContextManager[None]:
        """crun refuses hybrid control groups, so it does not get to see the v2 half of them."""
        if self._name == "crun" and self._unified is not None:
            return self._stage.without(self._unified)
        return contextlib.nullcontext()

    def _config(
        self, spec: ContainerSpec, root: Path, user: User, groups: Iterable[int]
    ) -> dict[str, Any]:
        config = bundle_config(
            spec,
            root,
            user,
            args=[INIT_PATH, *init_arguments(user, spec.command, groups)],
            workdir=working_directory(spec, root),
            mounts=[*_SYSTEM_MOUNTS, *_mounts(spec, root), *_device_mounts(spec)],
        )
        config["linux"] |= {
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
            "cgroupsPath": self._group_path(spec.id),
            "resources": {"devices": _device_rules(spec)},
            "seccomp": _seccomp(),
        }
        if spec.hooks:
            config["hooks"] = _hooks(spec)
        return config

    def _group_path(self, container_id: str) -> str:
        """The tool's own control group, which keeps devices out.

        Next to ours on v1, where a process may be in several groups; inside ours on v2, so that
        the container is in both.
        """
        group = f"/homeport/{self._cgroups.owner}/{container_id}"
        return f"{group}/{INNER_GROUP}" if self._cgroups.unified_only else f"{group}{OCI_SUFFIX}"


_PLAIN: Final = ["nosuid", "noexec", "nodev"]
_DEVICES: Final = ("full", "null", "random", "tty", "urandom", "zero")

_SYSTEM_MOUNTS: Final[list[dict[str, Any]]] = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": _PLAIN},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "noexec", "nodev", "strictatime", "mode=755", "size=65536k"],
    },
    *(
        {
            "destination": f"/dev/{name}",
            "type": "bind",
            "source": f"/dev/{name}",
            "options": ["bind", "nosuid", "noexec"],
        }
        for name in _DEVICES
    ),
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    },
    {
        "destination": "/dev/shm",
        "type": "tmpfs",
        "source": "shm",
        "options": ["nosuid", "nodev", "mode=1777"],
    },
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": _PLAIN},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*_PLAIN, "ro"]},
]


def _mounts(spec: ContainerSpec, root: Path) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = []
    for mount in mount_plan(spec, root):
        if mount.source:
            access = "ro" if mount.read_only else "rw"
            mounts.append(
                {
                    "destination": mount.target,
                    "type": "bind",
                    "source": mount.source,
                    "options": ["rbind", "rprivate", "nosuid", "nodev", access],
                }
            )
        else:
            mounts.append(
                {
                    "destination": mount.target,
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": ["nosuid", "nodev", "mode=1777"],
                }
            )
    return mounts


def _device_mounts(spec: ContainerSpec) -> list[dict[str, Any]]:
    return [
        {
            "destination": device.target,
            "type": "bind",
            "source": str(device.source),
            "options": ["bind", "nosuid", "noexec"],
        }
        for device in spec.devices
    ]


def _device_rules(spec: ContainerSpec) -> list[dict[str, Any]]:
    """None, but for those of the container; the tool itself adds the harmless ones."""
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for device in spec.devices:
        rules.append(
            {
                "allow": True,
                "type": device.kind,
                "major": device.major,
                "minor": device.minor,
                "access": device.access,
            }
        )
    return rules


def _hooks(spec: ContainerSpec) -> dict[str, Any]:
    stages: dict[str, Any] = {}
    for hook in spec.hooks:
        entry: dict[str, Any] = {"path": hook.path}
        if hook.args:
            entry["args"] = list(hook.args)
        if hook.env:
            entry["env"] = list(hook.env)
        if hook.timeout_s is not None:
            entry["timeout"] = hook.timeout_s
        stages.setdefault(hook.stage, []).append(entry)
    return stages


def _seccomp() -> dict[str, Any]:
    def refuse(names: list[str], number: int, *conditions: dict[str, Any]) -> dict[str, Any]:
        rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": number}
        if conditions:
            rule["args"] = list(conditions)
        return rule

    machine = {"x86_64": ["X86_64", "X86", "X32"], "aarch64": ["AARCH64", "ARM"]}
    rules = [refuse(list(DENIED), errno.EPERM), refuse(["clone3"], errno.ENOSYS)]
    for flag in NAMESPACE_FLAGS:
        condition = {"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}
        rules.append(refuse(["clone"], errno.EPERM, condition))
    for family in DENIED_FAMILIES:
        condition = {"index": 0, "value": int(family), "op": "SCMP_CMP_EQ"}
        rules.append(refuse(["socket"], errno.EPERM, condition))
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": [f"SCMP_ARCH_{name}" for name in machine.get(os.uname().machine, [])],
        "syscalls": rules,
    }
