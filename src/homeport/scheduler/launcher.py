"""Puts together what a node needs to start a container."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from homeport.apps.service import AppService
from homeport.functions.model import FunctionRecord, FunctionSpec
from homeport.functions.service import FunctionService
from homeport.functions.wire import container_arguments, layout_message
from homeport.kernel.errors import HomeportError, InvalidError
from homeport.kernel.resources import Limits
from homeport.link.messages import HostDirectory, ImageConfig, MountRef, StartTask, VolumeRef
from homeport.settings import Settings

BUILDERS_WITH_CLIENT_IN_IMAGE = frozenset({"2023.12", "2024.04", "2024.10"})
"""Image builder versions whose images carry the client's dependencies themselves; for later ones
they are mounted when the container starts."""


class Image(Protocol):
    """What starting a container needs of an image."""

    @property
    def layers(self) -> list[str]: ...

    @property
    def config(self) -> ImageConfig: ...

    @property
    def python_version(self) -> str: ...

    @property
    def builder_version(self) -> str: ...


class Images(Protocol):
    async def ready(self, image_id: str) -> Image: ...


class Mounts(Protocol):
    async def digest(self, mount_id: str) -> str: ...

    async def client_digest(self, version: str) -> str: ...

    async def deps_digest(self, builder_version: str, python_minor: str) -> str: ...


class Secrets(Protocol):
    async def env(self, secret_ids: list[str]) -> dict[str, str]: ...


class Volumes(Protocol):
    async def make_directory(self, volume_id: str, path: str) -> None: ...


class Directories(Protocol):
    async def directory(self, object_id: str) -> Path: ...


class Launcher:
    """Builds ``StartTask`` messages."""

    def __init__(
        self,
        settings: Settings,
        apps: AppService,
        functions: FunctionService,
        images: Images,
        mounts: Mounts,
        secrets: Secrets,
        volumes: Volumes,
        directories: Directories,
        volume_handle: Callable[[str], bytes],
    ) -> None:
        self._settings = settings
        self._apps = apps
        self._functions = functions
        self._images = images
        self._mounts = mounts
        self._secrets = secrets
        self._volumes = volumes
        self._directories = directories
        self._volume_handle = volume_handle

    async def prepare(
        self, record: FunctionRecord, task_id: str, memory_limit_mb: int, milli_cpu: int
    ) -> StartTask:
        """Everything of one container. Raises ``HomeportError`` with the reason it cannot start."""
        spec = record.require_spec()
        image = await self._images.ready(spec.image_id)
        python = _minor(image.python_version)
        if not python:
            raise InvalidError(
                f"The image of function {spec.display_name!r} has no Python on its PATH: "
                "function containers need one (use add_python=, or an image with Python)."
            )
        app = self._apps.get(record.app_id)
        layout = layout_message(
            app.layout, [self._functions.get(item) for item in app.layout.function_ids.values()]
        )
        return StartTask(
            task_id=task_id,
            function_id=record.function_id,
            app_id=record.app_id,
            command=[*image.config.entrypoint, "python", "-m", "modal._container_entrypoint"],
            layers=image.layers,
            mounts=await self._mount_refs(spec, image.builder_version, python),
            env=await self._environment(spec, image.config, app.environment),
            workdir=image.config.workdir or "/root",
            arguments=container_arguments(
                record,
                task_id=task_id,
                layout=layout,
                environment=app.environment,
                volume_handle=self._volume_handle,
            ),
            python=python,
            limits=Limits(
                milli_cpu=milli_cpu,
                milli_cpu_max=spec.milli_cpu_max,
                memory_mb=memory_limit_mb,
                pids=self._settings.pids_max,
            ),
            runtime=self._settings.default_runtime,
            startup_timeout_s=spec.startup_timeout_s,
            input_timeout_s=spec.timeout_s,
            max_concurrent=max(1, spec.max_concurrent),
            target_concurrent=spec.target_concurrent or max(1, spec.max_concurrent),
            batch_max_size=spec.batch_max_size,
            batch_linger_ms=spec.batch_linger_ms,
            single_use=spec.single_use,
            is_server=spec.is_server,
            server_port=spec.web[0].port if spec.is_server and spec.web else 0,
            block_network=spec.block_network,
            untrusted=spec.untrusted,
            memory_snapshot=spec.memory_snapshot,
            deployed=app.deployed is not None,
            volumes=await self._volume_refs(spec, image.config.workdir),
            directories=[
                HostDirectory(str(await self._directories.directory(mount.object_id)), mount.path)
                for mount in spec.directories
            ],
            buckets=[
                msgspec.structs.replace(
                    ref,
                    credentials=await self._secrets.env([ref.secret_id]) if ref.secret_id else {},
                )
                for ref in spec.buckets
            ],
        )

    async def _mount_refs(
        self, spec: FunctionSpec, builder_version: str, python: str
    ) -> list[MountRef]:
        refs: list[MountRef] = []
        if builder_version not in BUILDERS_WITH_CLIENT_IN_IMAGE:
            digest = await self._mounts.deps_digest(builder_version, python)
            refs.append(MountRef(digest, compile=True))
        client = await self._mounts.client_digest(spec.client_version)
        for mount_id in spec.mount_ids:
            digest = await self._mounts.digest(mount_id)
            refs.append(MountRef(digest, compile=digest == client))
        return refs

    async def _volume_refs(self, spec: FunctionSpec, workdir: str) -> list[VolumeRef]:
        for mount in spec.volumes:
            if workdir == mount.path or workdir.startswith(mount.path + "/"):
                raise InvalidError(
                    f"The image of function {spec.display_name!r} has the working directory "
                    f"{workdir}, where a volume is to be mounted: change one of the two."
                )
            if mount.sub_path:
                await self._volumes.make_directory(mount.volume_id, mount.sub_path)
        return [
            VolumeRef(mount.volume_id, mount.path, mount.read_only, mount.sub_path)
            for mount in spec.volumes
        ]

    async def _environment(
        self, spec: FunctionSpec, config: ImageConfig, environment: str
    ) -> dict[str, str]:
        """Image, then secrets in their order, then what the platform promises."""
        env = {"LANG": "C.UTF-8", **config.env}
        env.update(await self._secrets.env(spec.secret_ids))
        env.update(
            {
                "MODAL_ENVIRONMENT": environment,
                "MODAL_IMAGE_ID": spec.image_id,
                "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_UNSPECIFIED",
                "MODAL_REGION": "local",
            }
        )
        return env


def _minor(version: str) -> str:
    """``3.11`` from ``3.11.7`` or ``Python 3.11.7 (main, …)``."""
    text = version.removeprefix("Python ").strip()
    parts = text.split(" ")[0].split(".")
    return ".".join(parts[:2]) if len(parts) >= 2 else ""


def start_error(error: BaseException) -> str:
    """The sentence for a container that could not be prepared."""
    return error.message if isinstance(error, HomeportError) else f"{type(error).__name__}: {error}"
