"""Image recipes, records and what identifies an image."""

from __future__ import annotations

import hashlib
from enum import IntEnum
from typing import Final

import msgspec

from homeport.kernel import ids
from homeport.link.messages import ImageConfig, VolumeRef

CONTEXT_FILES_BYTES_MAX: Final = 32 * 1024 * 1024
"""Inline context files of one recipe: they are kept with the record and travel in one message."""


class ImageStatus(IntEnum):
    """Where the last build of an image stands. ``BUILDING`` may outlive the server that began it."""

    BUILDING = 0
    SUCCEEDED = 1
    FAILED = 2


class ContextFile(msgspec.Struct, frozen=True, array_like=True):
    """A small file of the build context, sent with the recipe."""

    name: str
    data: bytes


class FunctionStep(msgspec.Struct, frozen=True, array_like=True):
    """``Image.run_function``: what identifies the function and what it is called with.

    ``definition`` is its source, ``globals`` what it refers to; ``args`` the serialized arguments
    in ``data_format``, ``None`` without any.
    """

    definition: str
    globals: bytes
    args: bytes | None = None
    args_blob_id: str = ""
    data_format: int = 0


class Recipe(msgspec.Struct, frozen=True, array_like=True):
    """Everything that decides what an image is.

    ``bases`` are (name in FROM, image id); ``context_digest`` and ``secret_digest`` stand for
    contents, so ids that are new on every run do not matter.
    """

    dockerfile: list[str]
    bases: list[tuple[str, str]]
    context_files: list[ContextFile]
    context_digest: str
    build_args: dict[str, str]
    secret_digest: str
    builder_version: str
    registry_secret_digest: str = ""
    function: FunctionStep | None = None
    volumes: list[VolumeRef] = []
    """Mounted while its RUNs run. What is in them decides nothing, as with a cache."""


class BuildInputs(msgspec.Struct, frozen=True, array_like=True):
    """What a build needs beside the recipe and decides nothing about the image."""

    function_id: str = ""
    """The function that ``Recipe.function`` is, as its app created it."""
    registry_kind: str = ""
    """How to sign in to the registry of a FROM: ``aws``, ``gcp``, ``static`` or not at all."""
    registry_secret_id: str = ""
    snapshot_of: str = ""
    """The sandbox whose files it is: nothing can build it again."""
    expires_at: float = 0.0
    """When nobody wants it any more (Unix seconds); 0 = never."""
    gpu: str = ""
    """The GPU that its RUN steps were to have."""


class ImageRequest(msgspec.Struct, frozen=True):
    """What a client asks for. Ids are the caller's and decide nothing; contents do."""

    dockerfile: list[str]
    bases: list[tuple[str, str]]
    context_files: list[ContextFile]
    context_mount_id: str
    build_args: dict[str, str]
    secret_ids: list[str]
    builder_version: str
    app_id: str = ""
    force_build: bool = False
    ignore_cache: bool = False
    function: FunctionStep | None = None
    inputs: BuildInputs = BuildInputs()
    volumes: list[VolumeRef] = []


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An image and its last build. Times are Unix seconds, 0 while unknown.

    ``layers`` and what follows describe the last build that succeeded; ``status`` and ``error``
    the last one. ``python_version_info`` is what ``python -VV`` printed.
    """

    image_id: str
    recipe: Recipe
    secret_ids: list[str]
    app_id: str
    status: ImageStatus
    created_at: float
    build_id: str = ""
    inputs: BuildInputs = BuildInputs()
    started_at: float = 0.0
    finished_at: float = 0.0
    error: str = ""
    layers: list[str] = []
    config: ImageConfig = ImageConfig()
    python_version_info: str = ""
    libc_version: str = ""

    @property
    def builder_version(self) -> str:
        """The image builder version it was made with."""
        return self.recipe.builder_version

    @property
    def python_version(self) -> str:
        """``3.11.7``; empty if there is no Python on the image's PATH."""
        words = self.python_version_info.split()
        return words[1] if len(words) > 1 and words[0] == "Python" else ""

    @property
    def is_snapshot(self) -> bool:
        """Whether it was not built, and so cannot be built again."""
        return bool(self.inputs.snapshot_of)

    @property
    def is_usable(self) -> bool:
        """Whether there is a build that containers can start from."""
        return self.finished_at > 0 and (self.status is ImageStatus.SUCCEEDED or bool(self.layers))


class NamedImage(msgspec.Struct, frozen=True):
    """A name (``model:latest``) and one image that was published under it. Times are Unix seconds.

    ``position`` grows with every publication of the installation.
    """

    position: int
    revision_id: str
    environment_id: str
    name: str
    image_id: str
    created_at: float
    published_by: str


def image_id_of(recipe: Recipe, salt: str = "") -> str:
    """The id of the image that ``recipe`` makes; ``salt`` keeps an uncached build apart."""
    data = msgspec.msgpack.encode(recipe, order="sorted")
    return ids.derive(ids.IMAGE, data, salt) if salt else ids.derive(ids.IMAGE, data)


def contents_digest(values: dict[str, str]) -> str:
    """Names the contents of secrets; empty for none."""
    if not values:
        return ""
    return hashlib.sha256(msgspec.msgpack.encode(sorted(values.items()))).hexdigest()


def function_layer(recipe: Recipe, parent: str, salt: str = "") -> str:
    """The key of the layer that the recipe's function makes on top of layer ``parent``."""
    data = msgspec.msgpack.encode(
        [parent, recipe.function, recipe.secret_digest, recipe.builder_version, salt]
    )
    return hashlib.sha256(b"run_function" + data).hexdigest()[:32]
