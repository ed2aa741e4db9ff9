"""Puts together what a node needs to start a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from homeport.kernel.errors import InvalidError
from homeport.kernel.resources import Limits
from homeport.link.messages import BucketRef, HostDirectory, ImageConfig, MountRef, StartSandbox
from homeport.sandboxes.model import (
    GVISOR,
    SandboxRecord,
    SandboxSpec,
    SecretRef,
    exit_image_id,
)
from homeport.settings import Settings

EXIT_IMAGE_S: Final = 30 * 86400.0
"""How long the image of a sandbox's end is kept."""


class Image(Protocol):
    """What starting a sandbox needs of an image."""

    @property
    def layers(self) -> list[str]: ...

    @property
    def config(self) -> ImageConfig: ...


class Images(Protocol):
    def get(self, image_id: str) -> Image: ...

    async def ready(self, image_id: str) -> Image: ...


class Mounts(Protocol):
    async def digest(self, mount_id: str) -> str: ...


class Secrets(Protocol):
    async def env(self, secret_ids: Sequence[str]) -> dict[str, str]: ...

    def open(self, owner_id: str, sealed: bytes) -> dict[str, str]: ...


class Volumes(Protocol):
    async def make_directory(self, volume_id: str, path: str) -> None: ...


class VolumeObjects(Protocol):
    def get(self, object_id: str) -> object: ...


class Directories(Protocol):
    async def directory(self, object_id: str) -> Path: ...


class SandboxLauncher:
    """Builds ``StartSandbox`` messages."""

    def __init__(
        self,
        settings: Settings,
        images: Images,
        mounts: Mounts,
        secrets: Secrets,
        volumes: Volumes,
        volume_objects: VolumeObjects,
        directories: Directories,
    ) -> None:
        self._settings = settings
        self._images = images
        self._mounts = mounts
        self._secrets = secrets
        self._volumes = volumes
        self._volume_objects = volume_objects
        self._directories = directories

    async def prepare(
        self, record: SandboxRecord, memory_limit_mb: int, milli_cpu: int
    ) -> StartSandbox:
        """Everything of one sandbox. Raises ``HomeportError`` with the reason it cannot start."""
        spec = record.spec
        image = await self._images.ready(spec.image_id)
        workdir = spec.workdir or image.config.workdir or "/"
        for volume in spec.volumes:
            if workdir == volume.path or workdir.startswith(volume.path + "/"):
                # the volume is mounted after the working directory is entered
                if not spec.workdir:
                    workdir = "/"
                    continue
                raise InvalidError(
                    f"the working directory {workdir} is inside the volume at {volume.path}: "
                    "change one of the two"
                )
        for volume in spec.volumes:
            if volume.sub_path and not volume.read_only:
                await self._volumes.make_directory(volume.volume_id, volume.sub_path)
        return StartSandbox(
            task_id=record.task_id,
            sandbox_id=record.sandbox_id,
            app_id=record.app_id,
            command=command_of(spec, image.config),
            layers=image.layers,
            mounts=[MountRef(await self._mounts.digest(each)) for each in spec.mount_ids],
            env=await self._environment(record, image.config),
            workdir=workdir,
            limits=Limits(
                milli_cpu=milli_cpu if spec.milli_cpu else self._settings.default_milli_cpu,
                milli_cpu_max=spec.milli_cpu_max,
                memory_mb=memory_limit_mb,
                pids=self._settings.pids_max,
            ),
            runtime=GVISOR if spec.needs_gvisor else "",  # else its node's choice
            timeout_s=spec.timeout_s,
            idle_timeout_s=spec.idle_timeout_s,
            block_network=spec.block_network,
            volumes=spec.volumes,
            probe=spec.probe,
            terminal=spec.terminal,
            allowed_cidrs=spec.allowed_cidrs,
            allowed_domains=spec.allowed_domains,
            directories=[
                HostDirectory(str(await self._directories.directory(object_id)), path)
                for object_id, path in spec.directories
            ],
            buckets=[await self._bucket(record, ref) for ref in spec.buckets],
            exit_image_id=exit_image_id(record.task_id) if spec.exit_snapshot else "",
            exit_image_s=EXIT_IMAGE_S if spec.exit_snapshot else 0.0,
            memory_snapshots=spec.memory_snapshots,
            memory_layer=await self._memory_layer(spec),
        )

    async def _memory_layer(self, spec: SandboxSpec) -> str:
        if not spec.memory_image_id:
            return ""
        return (await self._images.ready(spec.memory_image_id)).layers[-1]

    async def _bucket(self, record: SandboxRecord, ref: BucketRef) -> BucketRef:
        """With the credentials of its secret, or those that were sent along."""
        sent = record.spec.bucket_secrets.get(ref.path)
        refs = [SecretRef(ref.secret_id)] if ref.secret_id else [sent] if sent is not None else []
        credentials = await self.variables(record.sandbox_id, refs)
        return msgspec.structs.replace(ref, credentials=credentials)

    async def check(self, sandbox_id: str, spec: SandboxSpec) -> None:
        """Raise ``NotFoundError`` for secrets, mounts or volumes that are not there.

        An image must have been built: ``NotFoundError`` or ``InvalidError``.
        """
        self._images.get(spec.image_id)
        await self.variables(sandbox_id, spec.secrets)
        for mount_id in spec.mount_ids:
            await self._mounts.digest(mount_id)
        for volume in spec.volumes:
            self._volume_objects.get(volume.volume_id)
        for object_id, _ in spec.directories:
            await self._directories.directory(object_id)

    async def variables(self, sandbox_id: str, refs: Sequence[SecretRef]) -> dict[str, str]:
        """The variables of these secrets; later ones override. Raises ``NotFoundError``."""
        env: dict[str, str] = {}
        named: list[str] = []
        for ref in refs:
            if ref.secret_id:
                named.append(ref.secret_id)
                continue
            env.update(await self._secrets.env(named))
            named.clear()
            env.update(self._secrets.open(sandbox_id, ref.sealed))
        env.update(await self._secrets.env(named))
        return env

    async def _environment(self, record: SandboxRecord, config: ImageConfig) -> dict[str, str]:
        """Image, then secrets in their order, then what the platform promises."""
        spec = record.spec
        env = {"LANG": "C.UTF-8", **config.env}
        env.update(await self.variables(record.sandbox_id, spec.secrets))
        env.update(
            {
                "MODAL_SANDBOX_ID": record.sandbox_id,
                "MODAL_TASK_ID": record.task_id,
                "MODAL_IMAGE_ID": spec.image_id,
                "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_UNSPECIFIED",
                "MODAL_REGION": "local",
            }
        )
        return env


def command_of(spec: SandboxSpec, config: ImageConfig) -> list[str]:
    """What runs: the image's ENTRYPOINT, then what was asked for, or else the image's CMD."""
    return [*config.entrypoint, *(spec.command or config.cmd)]
