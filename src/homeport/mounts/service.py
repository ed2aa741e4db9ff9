"""Use cases of mounts: contents in, manifests out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol

from homeport.blobs.service import BlobService
from homeport.environments.model import Environment
from homeport.kernel.clock import Clock, SystemClock
from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.kernel.joined import JoinedCache
from homeport.link.messages import ManifestFile
from homeport.mounts import model
from homeport.mounts.model import Mount, RequestedFile
from homeport.mounts.store import MountStore
from homeport.storage.contents import ContentStore, checked_name

_CLIENT_MOUNT: Final = "modal-client-mount-"
_PYTHON_MOUNT: Final = "python-build-standalone."
_DIGESTS_MAX: Final = 4_096
_MANIFESTS_MAX: Final = 64
"""Decoded manifests kept: a few hundred bytes a file, some megabytes in all."""


class GlobalMounts(Protocol):
    """Makes the mounts that clients expect every platform to have.

    The contents of the files returned are in the file store. May take seconds; the service asks
    once and remembers.
    """

    async def client_mount(self, version: str) -> list[ManifestFile]:
        """The client package of that version below ``/pkg``. Raises ``NotFoundError``."""
        ...

    async def python_mount(self, name: str) -> list[ManifestFile]:
        """A movable CPython below ``/python`` (``20230826.3.11.5-gnu``)."""
        ...

    async def deps_mount(self, builder_version: str, python_minor: str) -> list[ManifestFile]:
        """The client's dependencies below ``/__modal/deps`` for Python ``python_minor`` (3.11)."""
        ...


class MountService:
    """Mounts by id and by digest."""

    def __init__(
        self,
        store: MountStore,
        files: ContentStore,
        blobs: BlobService,
        global_mounts: GlobalMounts,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._files = files
        self._blobs = blobs
        self._global = global_mounts
        self._clock = clock or SystemClock()
        self._made = JoinedCache[str, Mount]()
        self._digests = JoinedCache[str, str](_DIGESTS_MAX)
        self._manifests = JoinedCache[str, list[ManifestFile]](_MANIFESTS_MAX)

    # ── contents ────────────────────────────────────────────────────────────────────────────

    async def missing(self, hashes: Sequence[str]) -> list[str]:
        """Those of ``hashes`` whose content is not stored, in their order."""
        stored = await self._files.sizes(hashes)
        return [sha256 for sha256 in hashes if sha256 not in stored]

    async def has_file(self, sha256: str) -> bool:
        return await self._files.has(sha256)

    async def put_file(self, sha256: str, data: bytes) -> None:
        """Store the content of a file. Raises ``InvalidError`` if ``data`` is not that content."""
        checked_name(sha256)
        await self._files.put_bytes(data, expect=sha256)

    async def put_blob(self, sha256: str, blob_id: str) -> None:
        """Take an uploaded blob as the content of a file.

        Raises ``NotFoundError`` or ``InvalidError`` if there is no such blob or it differs.
        """
        blob = await self._blobs.get(blob_id)
        if blob.sha256 != sha256:
            raise InvalidError(f"blob {blob_id} has SHA-256 {blob.sha256}, not {sha256}")
        if not await self._files.has(sha256):
            raise NotFoundError(f"the content of blob {blob_id} is gone; upload it again")

    # ── mounts ──────────────────────────────────────────────────────────────────────────────

    async def create(self, files: Iterable[RequestedFile]) -> Mount:
        """The mount with these files. Raises ``InvalidError`` naming a file it lacks."""
        mount, data = await self._build(files)
        await self._store.add(mount, data, self._clock.now())
        return mount

    async def create_named(
        self, files: Iterable[RequestedFile], *, environment: Environment, name: str, keep: bool
    ) -> Mount:
        """As ``create`` and named; an existing name is kept or raises ``AlreadyExistsError``."""
        mount, data = await self._build(files)
        return await self._store.add_named(
            mount,
            data,
            self._clock.now(),
            environment_id=environment.environment_id,
            name=name,
            keep=keep,
        )

    async def named(self, environment: Environment, name: str) -> Mount:
        """The mount with that name. Raises ``NotFoundError``."""
        mount = await self._store.named(environment.environment_id, name)
        if mount is None:
            raise NotFoundError(f"mount {name!r} was not found in environment {environment.name!r}")
        return mount

    async def named_global(self, name: str) -> Mount:
        """One of the platform's own mounts, made on first use. Raises ``NotFoundError``."""
        if name.startswith(_PYTHON_MOUNT):
            python = name.removeprefix(_PYTHON_MOUNT)
            return await self._make(name, lambda: self._global.python_mount(python))
        if not name.startswith(_CLIENT_MOUNT):
            raise NotFoundError(
                f"this server has no global mount {name!r}; it provides {_CLIENT_MOUNT}<version> "
                f"and {_PYTHON_MOUNT}<release>.<version>-gnu"
            )
        version = name.removeprefix(_CLIENT_MOUNT)
        return await self._make(name, lambda: self._global.client_mount(version))

    async def client_digest(self, version: str) -> str:
        """Digest of the mount with the client package of that version."""
        return (await self.named_global(_CLIENT_MOUNT + version)).digest

    async def deps_digest(self, builder_version: str, python_minor: str) -> str:
        """Digest of the mount with the client's dependencies, made on first use."""
        name = f"{builder_version}-cp{python_minor}"
        mount = await self._make(
            name, lambda: self._global.deps_mount(builder_version, python_minor)
        )
        return mount.digest

    async def digest(self, mount_id: str) -> str:
        """Digest of a mount. Raises ``NotFoundError``."""

        async def load() -> str:
            digest = await self._store.digest(mount_id)
            if digest is None:
                raise NotFoundError(f"mount {mount_id} does not exist")
            return digest

        return await self._digests.get(mount_id, load)

    async def manifest(self, digest: str) -> list[ManifestFile]:
        """The files of a mount, sorted by name. Raises ``NotFoundError``."""

        async def load() -> list[ManifestFile]:
            return model.decode(await self.manifest_data(digest))

        return await self._manifests.get(digest, load)

    async def manifest_data(self, digest: str) -> bytes:
        """The encoded manifest (as nodes fetch it). Raises ``NotFoundError``."""
        data = await self._store.manifest(digest)
        if data is None:
            raise NotFoundError(f"no mount has the digest {digest}")
        return data

    async def contents(self) -> set[str]:
        """Hashes of the contents in use by mounts (for the file store's ``sweep``)."""
        manifests = await self._store.all_manifests()
        return {file.sha256 for data in manifests for file in model.decode(data)}

    async def _make(self, name: str, files: Callable[[], Awaitable[list[ManifestFile]]]) -> Mount:
        async def make() -> Mount:
            manifest = sorted(await files(), key=lambda file: file.name)
            data = model.encode(manifest)
            mount = model.mount_of(model.digest_of(data))
            await self._store.add(mount, data, self._clock.now())
            return mount

        return await self._made.get(name, make)

    async def _build(self, files: Iterable[RequestedFile]) -> tuple[Mount, bytes]:
        listed = list(files)
        sizes = await self._files.sizes({file.sha256 for file in listed})
        data = model.encode(model.build_manifest(listed, sizes))
        return model.mount_of(model.digest_of(data)), data
