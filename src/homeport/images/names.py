"""Names of images: published, looked up, listed, deleted."""

from __future__ import annotations

import re
from typing import Final

from homeport.environments.model import Environment
from homeport.environments.service import EnvironmentService
from homeport.images.model import NamedImage
from homeport.images.service import ImageService
from homeport.images.store import ImageNameStore
from homeport.kernel.clock import Clock
from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.storage.operations import OperationLog

PAGE_MAX: Final = 1_000
_NAME: Final = re.compile(r"^[A-Za-z0-9._-]{1,64}:[A-Za-z0-9._-]{1,64}$")


class NamedImages:
    """Names live in environments; the newest publication of a name is what it means."""

    def __init__(
        self,
        store: ImageNameStore,
        images: ImageService,
        environments: EnvironmentService,
        clock: Clock,
        operations: OperationLog,
    ) -> None:
        self._store = store
        self._operations = operations
        self._images = images
        self._environments = environments
        self._clock = clock

    def parse(self, tag: str, environment: str) -> tuple[Environment, str]:
        """The environment and the name of ``[environment/]name[:tag]``. Raises ``InvalidError``."""
        prefix, _, name = tag.rpartition("/")
        if ":" not in name:
            name += ":latest"
        if not _NAME.match(name):
            raise InvalidError(
                f"{tag!r} cannot name an image: letters, digits, '.', '_' and '-', up to 64, and "
                "a tag of the same behind a colon"
            )
        return self._environments.resolve(prefix or environment), name

    async def publish(
        self, image_id: str, tag: str, *, environment: str, published_by: str, revision_id: str
    ) -> NamedImage:
        """Let ``tag`` mean this image from now on; once for a ``revision_id``.

        Raises ``NotFoundError`` or ``InvalidError`` if there is no such image, or none built.
        """
        self._images.get(image_id)
        place, name = self.parse(tag, environment)
        published = NamedImage(
            0, revision_id, place.environment_id, name, image_id, self._clock.now(), published_by
        )
        await self._store.add(published)
        return published

    async def find(self, tag: str, *, environment: str) -> NamedImage:
        """What ``tag`` means. Raises ``NotFoundError``."""
        place, name = self.parse(tag, environment)
        found = await self._store.revisions(place.environment_id, name, None, 1)
        if not found:
            raise NotFoundError(
                f"Image {name!r} not found in environment {place.name!r}; publish it first "
                f"(image.publish({name!r}))"
            )
        return found[0]

    async def list(
        self, *, environment: str, prefix: str, image_id: str, after: str, limit: int
    ) -> tuple[Environment, list[tuple[NamedImage, float]], str]:
        """Names that start with ``prefix``: (what each means, when it was first published).

        The last value is where to go on (``after``), empty at the end.
        """
        place = self._environments.resolve(environment)
        count = min(limit or PAGE_MAX, PAGE_MAX)
        rows = await self._store.names(place.environment_id, prefix, image_id, after, count)
        return place, rows, rows[-1][0].name if len(rows) == count else ""

    async def revisions(
        self, tag: str, *, environment: str, before: str, limit: int
    ) -> tuple[Environment, str, list[NamedImage], str]:
        """What ``tag`` meant, newest first, and where to go on (``before``), empty at the end."""
        place, name = self.parse(tag, environment)
        if before and not before.isdecimal():
            raise InvalidError("this page token is not one of this server")
        count = min(limit or PAGE_MAX, PAGE_MAX)
        position = int(before) if before else None
        rows = await self._store.revisions(place.environment_id, name, position, count)
        return place, name, rows, str(rows[-1].position) if len(rows) == count else ""

    async def delete(self, tag: str, *, environment: str, operation: str = "") -> None:
        """Forget a name and its history; the images stay. Raises ``NotFoundError``.

        ``operation`` names the call for its repeats.
        """
        if await self._operations.was_done(operation):
            return
        found = await self.find(tag, environment=environment)
        recorded = self._operations.record(operation)
        await self._store.delete(found.environment_id, found.name, recorded)

    async def by_image(self) -> dict[str, list[str]]:
        """The names of each image that has any, of all environments."""
        found: dict[str, list[str]] = {}
        for named in await self._store.current():
            found.setdefault(named.image_id, []).append(named.name)
        return found

    async def delete_image(self, image_id: str, operation: str = "") -> None:
        """Forget an image and the names that mean it. ``operation`` names the call for its repeats.

        Raises ``NotFoundError``, ``ConflictError`` while it is being built.
        """
        if await self._operations.was_done(operation):
            return
        self._images.check_deletable(image_id)
        await self._store.delete_image(image_id)
        await self._images.delete(image_id, self._operations.record(operation))

    async def environment_deleting(self, environment: Environment) -> None:
        """Forget the names of an environment that goes."""
        await self._store.delete_environment(environment.environment_id)
