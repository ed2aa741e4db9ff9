"""The workspace's own facts and settings; in memory, changes go to the database first."""

from __future__ import annotations

from typing import Final

from homeport.kernel import ids
from homeport.storage.database import Database
from homeport.workspace import store

_ID: Final = "workspace_id"
_BUILDER: Final = "image_builder_version"


class WorkspaceService:
    """The one workspace of an installation. ``start`` before use."""

    def __init__(self, database: Database, *, name: str) -> None:
        self._database = database
        self._name = name
        self._settings: dict[str, str] = {}

    async def start(self) -> None:
        """Load the settings; at the first start give the workspace its id."""
        self._settings = await self._database.read(store.load_settings)
        if _ID not in self._settings:
            await self._put(_ID, ids.new(ids.WORKSPACE))

    @property
    def name(self) -> str:
        """What clients show as the workspace."""
        return self._name

    @property
    def workspace_id(self) -> str:
        return self._settings[_ID]

    @property
    def owner_id(self) -> str:
        """Of the one person whose installation this is; called like the workspace."""
        return f"us-{self.workspace_id.partition('-')[2]}"

    @property
    def image_builder_version(self) -> str:
        """For environments that do not choose one; empty: what suits each client."""
        return self._settings.get(_BUILDER, "")

    async def set_image_builder_version(self, version: str) -> None:
        """Choose it; empty goes back to what suits each client."""
        await self._put(_BUILDER, version)

    async def _put(self, name: str, value: str) -> None:
        await self._database.write(lambda connection: store.put_setting(connection, name, value))
        self._settings[name] = value
