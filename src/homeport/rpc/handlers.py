"""Every class with RPC handlers, so that coverage can be told without an installation."""

from __future__ import annotations

from typing import Final

from homeport.environments.rpc import EnvironmentsRpc
from homeport.workspace.rpc import WorkspaceRpc

HANDLER_CLASSES: Final[list[type]] = [
    EnvironmentsRpc,
    WorkspaceRpc,
]
