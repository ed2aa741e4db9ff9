"""Images that are a sandbox's files, kept for as long as their makers said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from homeport.images.model import BuildInputs, ImageRecord, ImageStatus, Recipe
from homeport.images.names import NamedImages
from homeport.images.service import ImageService
from homeport.kernel.clock import Clock
from homeport.link.messages import ImageConfig


class Layers(Protocol):
    """The nodes' layer stores."""

    def drop_layers(self, keys: Sequence[str], *, others: bool = False) -> None: ...

    def found_layers(self, node_id: str, keys: Sequence[str]) -> None: ...


class ImageSnapshots:
    """Records snapshots and forgets them in time. ``in_use`` names images that containers use."""

    def __init__(
        self,
        images: ImageService,
        names: NamedImages,
        layers: Layers,
        in_use: Callable[[], set[str]],
        clock: Clock,
    ) -> None:
        self._images = images
        self._names = names
        self._layers = layers
        self._in_use = in_use
        self._clock = clock

    async def add(
        self,
        image_id: str,
        *,
        made_on: str,
        base_id: str,
        layers: Sequence[str],
        node_id: str,
        sandbox_id: str,
        app_id: str,
        ttl_s: float,
        what: str = "files",
    ) -> None:
        """``layers`` over those of the image ``base_id`` are an image; durable when it returns.

        Without ``base_id`` they are all of it. ``made_on`` is the sandbox's own image,
        and ``what`` part of it this is is said in its recipe.
        """
        base = self._images.get(base_id) if base_id else None
        now = self._clock.now()
        recipe = Recipe(
            dockerfile=[
                "FROM base" if base else "FROM scratch",
                f"# the {what} of sandbox {sandbox_id}",
            ],
            bases=[("base", base_id)] if base else [],
            context_files=[],
            context_digest="",
            build_args={},
            secret_digest="",
            builder_version=(base or self._images.get(made_on)).builder_version,
        )
        record = ImageRecord(
            image_id=image_id,
            recipe=recipe,
            secret_ids=[],
            app_id=app_id,
            status=ImageStatus.SUCCEEDED,
            created_at=now,
            inputs=BuildInputs(snapshot_of=sandbox_id, expires_at=now + ttl_s if ttl_s else 0.0),
            started_at=now,
            finished_at=now,
            layers=[*base.layers, *layers] if base else [*layers],
            config=base.config if base else ImageConfig(),
            python_version_info=base.python_version_info if base else "",
            libc_version=base.libc_version if base else "",
        )
        self._layers.found_layers(node_id, layers)
        await self._images.take(record)

    async def prune(self) -> int:
        """Forget snapshots whose time is over, unless somebody uses or named them; how many."""
        now = self._clock.now()
        over = {
            record.image_id
            for record in self._images.all()
            if record.is_snapshot and 0.0 < record.inputs.expires_at < now
        }
        for record in self._images.all():
            if record.image_id not in over:
                over -= {base_id for _, base_id in record.recipe.bases}
        over -= {*self._in_use(), *await self._names.by_image()}
        gone: set[str] = set()
        for image_id in over:
            gone.update(self._images.get(image_id).layers)
            await self._names.delete_image(image_id)
        kept = {key for record in self._images.all() for key in record.layers}
        if gone - kept:
            self._layers.drop_layers(sorted(gone - kept))
        return len(over)
