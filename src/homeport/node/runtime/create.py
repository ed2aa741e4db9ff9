"""Choosing and making a node's runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from homeport.node.cgroups import CgroupProvider
from homeport.node.network import NetworkProvider, UnprivilegedNetwork, VethNetwork, network_tag
from homeport.node.runtime.base import StagedRuntime
from homeport.node.runtime.bubblewrap import BubblewrapRuntime
from homeport.node.runtime.oci import OciRuntime
from homeport.node.runtime.port import RuntimeUnavailableError
from homeport.node.runtime.records import NETWORK_TAG
from homeport.node.runtime.runsc import RunscRuntime

DEFAULT = "bubblewrap"
AUTO = "auto"
"""Setting ``sandbox_runtime``: the strongest one that works here."""
NAMES = ("bubblewrap", "runc", "crun", "runsc")


def check_default(name: str) -> None:
    """Raises ``RuntimeUnavailableError`` if functions cannot run in containers of this runtime."""
    if name == "runsc":
        raise RuntimeUnavailableError(
            "runsc (gVisor) is for sandboxes: containers of functions are served by listeners in "
            "their network, which gVisor's have none of; set sandbox_runtime instead of "
            "default_runtime"
        )


async def create_runtime(
    name: str,
    run_dir: Path,
    node_id: str,
    name_servers: Sequence[str] = (),
    prepared_max: int = 0,
) -> StagedRuntime:
    """The runtime called ``name`` (empty = bubblewrap), with its network, ready to start containers.

    ``run_dir`` is this node's alone; ``name_servers`` are what containers ask in place of the
    machine's own; so many containers wait ahead of their starts at most, where the runtime can
    (``prepared.py``). Raises ``RuntimeUnavailableError`` with the fix; there is no
    silent choice of another runtime.
    """
    name = name or DEFAULT
    if name not in NAMES:
        raise RuntimeUnavailableError(
            f"there is no runtime {name!r}; this version has {', '.join(NAMES)}"
        )
    tag = network_tag(node_id, run_dir)
    root = os.geteuid() == 0
    network: NetworkProvider = (
        VethNetwork(tag, name_servers=name_servers) if root else UnprivilegedNetwork()
    )
    cgroups = CgroupProvider(tag)
    runtime = _make(name, run_dir, network, cgroups, root=root, prepared_max=prepared_max)
    (run_dir / NETWORK_TAG).write_text(tag)  # how the leak check knows what is this node's
    try:
        await network.start()
    except BaseException:
        await runtime.close()
        raise
    return runtime


def _make(
    name: str,
    run_dir: Path,
    network: NetworkProvider,
    cgroups: CgroupProvider,
    *,
    root: bool,
    prepared_max: int,
) -> StagedRuntime:
    if name == "bubblewrap" and root:
        return BubblewrapRuntime(run_dir, network, cgroups)
    if not root:
        raise RuntimeUnavailableError(
            f"the runtime {name} needs root on this machine: run homeport as root"
        )
    if name == "runsc":
        return RunscRuntime(run_dir, network, cgroups, prepared_max=prepared_max)
    return OciRuntime(name, run_dir, network, cgroups)
