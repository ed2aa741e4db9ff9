"""What the configurations (``config.json``) of all OCI runtimes have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from homeport.node.runtime.arguments import CAPABILITIES, environment, hostname
from homeport.node.runtime.port import ContainerSpec
from homeport.node.runtime.users import User

_SPECIFICATION: Final = "1.0.2"


def bundle_config(
    spec: ContainerSpec,
    root: Path,
    user: User,
    *,
    args: Sequence[str],
    workdir: str,
    mounts: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """A container of its own pids, IPC, host name and mounts, whose first process is ``args``.

    Its network, limits and what it may call are the caller's to add.
    """
    env = environment(spec, user)
    return {
        "ociVersion": _SPECIFICATION,
        "root": {"path": str(root), "readonly": False},
        "hostname": hostname(spec),
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": workdir,
            "capabilities": {
                kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")
            },
            "noNewPrivileges": True,
        },
        "mounts": list(mounts),
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")]},
    }
