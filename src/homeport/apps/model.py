"""Apps and their life cycle."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from homeport.functions.model import Layout


class AppState(IntEnum):
    """The protocol's ``AppState`` numbers that Homeport uses."""

    EPHEMERAL = 1
    DETACHED = 2
    DEPLOYED = 3
    STOPPING = 4
    STOPPED = 5
    INITIALIZING = 6


LIVE_STATES = frozenset(
    {AppState.EPHEMERAL, AppState.DETACHED, AppState.DEPLOYED, AppState.INITIALIZING}
)


class Deployment(msgspec.Struct, frozen=True):
    """One published version of a deployed app. Times are Unix seconds."""

    version: int
    deployed_at: float
    client_version: str
    tag: str
    commit_hash: str = ""
    commit_dirty: bool = False


class App(msgspec.Struct, frozen=True, kw_only=True):
    """An app. ``name`` is set once it was deployed (or looked up into being)."""

    app_id: str
    description: str
    environment: str
    state: AppState
    created_at: float
    name: str = ""
    stopped_at: float = 0.0
    deployments: list[Deployment] = []
    layout: Layout = Layout()
    tags: dict[str, str] = {}
    definitions: dict[str, str] = {}
    """Function id → definition id of the last publish: tells an unchanged redeploy."""

    @property
    def is_live(self) -> bool:
        return self.state in LIVE_STATES

    @property
    def version(self) -> int:
        return self.deployments[-1].version if self.deployments else 0

    @property
    def deployed_at(self) -> float:
        return self.deployments[-1].deployed_at if self.deployments else 0.0
