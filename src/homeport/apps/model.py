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


VERSIONS_KEPT = 50
"""Versions of an app that can be rolled back to."""
HISTORY_MAX = 500
"""Versions of an app that are listed."""
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
    rollback_version: int = 0
    """The version that this one repeats; 0 = none."""
    layout: Layout = Layout()
    definitions: dict[str, str] | None = None
    """Function id → definition id; ``None`` once they are not kept any more."""
    is_staged: bool = False
    """It was recorded only, to be promoted later."""


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
    renewed: int = 0
    """The version that last asked for new containers of the same definitions."""

    @property
    def is_live(self) -> bool:
        return self.state in LIVE_STATES

    @property
    def deployed(self) -> Deployment | None:
        """The version that is live (was live, of a stopped app)."""
        live = (item for item in reversed(self.deployments) if not item.is_staged)
        return next(live, None)

    @property
    def version(self) -> int:
        return self.deployed.version if self.deployed else 0

    @property
    def latest_version(self) -> int:
        """Of staged ones too."""
        return self.deployments[-1].version if self.deployments else 0

    @property
    def deployed_at(self) -> float:
        return self.deployed.deployed_at if self.deployed else 0.0

    def with_deployment(self, deployment: Deployment) -> App:
        """With one more version. The definitions of the oldest ones are let go, then they."""
        kept = [*self.deployments, deployment][-HISTORY_MAX:]
        for index, item in enumerate(kept[:-VERSIONS_KEPT]):
            if item.definitions is not None:
                kept[index] = msgspec.structs.replace(item, definitions=None, layout=Layout())
        return msgspec.structs.replace(self, deployments=kept)
