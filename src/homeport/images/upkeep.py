"""What the installation's owner does with images: list, remove, prune, carry to another machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from homeport.images.model import ImageRecord, ImageStatus
from homeport.images.names import NamedImages
from homeport.images.service import ImageService
from homeport.kernel.errors import ConflictError, InvalidError, NotFoundError


class ImageSummary(msgspec.Struct, frozen=True):
    """One image in a listing. Times are Unix seconds."""

    image_id: str
    status: str
    created_at: float
    builder_version: str
    python: str
    layers: list[str]
    names: list[str]
    in_use: bool
    made_by: str
    """Its last instruction, or the function that made it."""


class ImageBundle(msgspec.Struct, frozen=True):
    """An image and those it was built from, oldest first: what another installation needs to
    take it for built."""

    records: list[ImageRecord]


class Layers(Protocol):
    """The nodes' layer stores."""

    def drop_layers(self, keys: Sequence[str], *, others: bool = False) -> None: ...

    def found_layers(self, node_id: str, keys: Sequence[str]) -> None: ...

    async def prune_caches(self) -> int: ...


class ImageUpkeep:
    """``in_use`` names the images that live apps start containers from."""

    def __init__(
        self,
        images: ImageService,
        names: NamedImages,
        layers: Layers,
        in_use: Callable[[], set[str]],
    ) -> None:
        self._images = images
        self._names = names
        self._layers = layers
        self._in_use = in_use

    async def list(self) -> list[ImageSummary]:
        """Every image, newest first."""
        names = await self._names.by_image()
        used = self._in_use()
        records = sorted(self._images.all(), key=lambda record: -record.created_at)
        return [
            ImageSummary(
                image_id=record.image_id,
                status=record.status.name.lower(),
                created_at=record.created_at,
                builder_version=record.builder_version,
                python=record.python_version,
                layers=record.layers,
                names=names.get(record.image_id, []),
                in_use=record.image_id in used,
                made_by=_made_by(record),
            )
            for record in records
        ]

    async def remove(self, image_ids: Sequence[str], *, force: bool) -> list[str]:
        """Forget images, their names and the layers that no other image has.

        Raises ``NotFoundError``, and without ``force`` ``ConflictError`` for one in use.
        """
        used = self._in_use()
        for image_id in image_ids:
            if self._images.find(image_id) is None:
                raise NotFoundError(f"Image {image_id!r} does not exist")
            if image_id in used and not force:
                raise ConflictError(
                    f"Image {image_id!r} is used by an app; stop the app, or use --force"
                )
        await self._forget(image_ids)
        return list(image_ids)

    async def prune(self, *, dry_run: bool) -> list[str]:
        """Remove what nobody can ask for: images that no live app uses, that have no name, are no
        sandbox's snapshot, and that none of the others is built from. Their layers go, and all layers of no image.
        """
        names = await self._names.by_image()
        needed: set[str] = set()
        snapshots = [record.image_id for record in self._images.all() if record.is_snapshot]
        for image_id in {*self._in_use(), *names, *snapshots}:
            if self._images.find(image_id) is not None:
                needed.update(record.image_id for record in self._images.chain(image_id))
        idle = [
            record.image_id
            for record in self._images.all()
            if record.image_id not in needed and record.status is not ImageStatus.BUILDING
        ]
        if not dry_run:
            await self._forget(idle, everything_else=True)
        return idle

    async def prune_caches(self) -> int:
        """Have nodes delete what builds keep for later ones; the bytes that were freed."""
        return await self._layers.prune_caches()

    async def _forget(self, image_ids: Sequence[str], *, everything_else: bool = False) -> None:
        gone: set[str] = set()
        for image_id in image_ids:
            record = self._images.find(image_id)
            if record is not None:
                gone.update(record.layers)
                await self._names.delete_image(image_id)
        kept = {key for record in self._images.all() for key in record.layers}
        if everything_else:
            self._layers.drop_layers(sorted(kept), others=True)
        else:
            self._layers.drop_layers(sorted(gone - kept))

    async def bundle(self, reference: str) -> ImageBundle:
        """An image by id or name with what it was built from. Raises ``NotFoundError``."""
        image_id = reference
        if not reference.startswith("im-"):
            image_id = (await self._names.find(reference, environment="")).image_id
        record = self._images.get(image_id)
        chain = [step for step in self._images.chain(record.image_id) if step.is_usable]
        return ImageBundle(chain)

    async def take(self, bundle: ImageBundle, node_id: str) -> list[str]:
        """Take images over that were built elsewhere; their layers are on that node already."""
        for record in bundle.records:
            if not record.is_usable or record.status is not ImageStatus.SUCCEEDED:
                raise InvalidError(f"Image {record.image_id!r} of the bundle is not built")
        for record in bundle.records:
            self._layers.found_layers(node_id, record.layers)
            await self._images.take(record)
        return [record.image_id for record in bundle.records]


def _made_by(record: ImageRecord) -> str:
    if record.recipe.function is not None:
        return "run_function"
    lines = [line.strip() for line in record.recipe.dockerfile if line.strip()]
    return lines[-1] if lines else ""
