"""Who answers RPCs, so that coverage can be told without an installation."""

from __future__ import annotations

from typing import Final

from homeport.apps.rpc import AppsRpc
from homeport.blobs.rpc import BlobRpc
from homeport.calls.rpc import CallsRpc
from homeport.dicts.rpc import DictRpc
from homeport.environments.rpc import EnvironmentsRpc
from homeport.functions.rpc import FunctionsRpc
from homeport.history.rpc import HistoryRpc
from homeport.images.rpc import ImagesRpc
from homeport.logs.rpc import LogRpc
from homeport.mounts.rpc import MountRpc
from homeport.nfs.rpc import NetworkFileSystemRpc
from homeport.programs.rpc import ProgramsRpc
from homeport.queues.rpc import QueueRpc
from homeport.sandboxes.memory_rpc import MemorySnapshotRpc
from homeport.sandboxes.persistent_rpc import PersistentSandboxRpc
from homeport.sandboxes.rpc import SandboxRpc
from homeport.sandboxes.sidecars_rpc import SidecarRpc
from homeport.secrets.rpc import SecretRpc
from homeport.tasks.rpc import TasksRpc
from homeport.volumes.rpc import VolumeRpc
from homeport.web.rpc import WebRpc
from homeport.workspace.rpc import WorkspaceRpc

HANDLER_CLASSES: Final[list[type]] = [
    AppsRpc,
    BlobRpc,
    CallsRpc,
    DictRpc,
    EnvironmentsRpc,
    FunctionsRpc,
    HistoryRpc,
    ImagesRpc,
    LogRpc,
    MemorySnapshotRpc,
    MountRpc,
    NetworkFileSystemRpc,
    ProgramsRpc,
    QueueRpc,
    PersistentSandboxRpc,
    SandboxRpc,
    SecretRpc,
    SidecarRpc,
    TasksRpc,
    VolumeRpc,
    WebRpc,
    WorkspaceRpc,
]

NODE_METHODS: Final = frozenset(
    {
        "ContainerCheckpoint",
        "ContainerHeartbeat",
        "ContainerHello",
        "ContainerServerLifecycleReady",
        "FlashContainerDeregister",
        "FlashContainerRegister",
        "ContainerStop",
        "FunctionGetDynamicConcurrency",
        "FunctionGetInputs",
        "FunctionPutOutputs",
        "TaskResult",
        "TunnelStart",
        "TunnelStop",
    }
)
"""What a node answers its containers itself (``node/container_rpc.py``)."""
