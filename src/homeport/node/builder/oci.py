"""OCI image layouts: read into the layer store, written from it."""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec

from homeport.kernel.decoding import UNREADABLE
from homeport.link.messages import ImageConfig
from homeport.node.builder.archives import tar_layer, untar
from homeport.node.builder.errors import BuildError
from homeport.node.layers import LayerMetadata, LayerStore, layer_key, remove_tree

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_REF_NAME = "org.opencontainers.image.ref.name"
LAYER_KEY = "dev.homeport.layer"
"""Annotation of a layer: what it is called in layer stores, whatever its tar looks like."""
RECORDS = "dev.homeport.records"
"""Annotation of a manifest: digest of a blob with the server's records of the image."""
_DOCUMENT_BYTES_MAX = 16 * 1024 * 1024

Json = dict[str, Any]


class _Platform(msgspec.Struct, frozen=True):
    os: str = ""
    architecture: str = ""


class _Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    digest: str = ""
    media_type: str = ""
    annotations: dict[str, str] | None = None
    platform: _Platform | None = None

    def annotation(self, name: str) -> str:
        return (self.annotations or {}).get(name, "")


class _Manifest(msgspec.Struct, frozen=True):
    """A manifest or an index, whichever it turns out to be."""

    config: _Descriptor | None = None
    layers: list[_Descriptor] = []
    manifests: list[_Descriptor] = []
    annotations: dict[str, str] | None = None


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[str] = []


class _Health(msgspec.Struct, frozen=True, rename="pascal"):
    test: list[str] | None = None


class _RunConfig(msgspec.Struct, frozen=True, rename="pascal"):
    env: list[str] | None = None
    working_dir: str | None = None
    user: str | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    shell: list[str] | None = None
    labels: dict[str, str] | None = None
    exposed_ports: dict[str, object] | None = None
    volumes: dict[str, object] | None = None
    stop_signal: str | None = None
    healthcheck: _Health | None = None
    on_build: list[str] | None = None


class _ImageDocument(msgspec.Struct, frozen=True):
    config: _RunConfig | None = None
    rootfs: _RootFs = _RootFs()


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LayoutImage:
    """An image in a layout: what it is made of."""

    config: ImageConfig
    layers: list[tuple[str, Path]]
    """(key in layer stores, tar file), lowest first."""
    records: bytes = b""


class Layout:
    """A directory in the OCI image layout; ``blobs`` may be elsewhere (shared by several)."""

    def __init__(self, root: Path, blobs: Path | None = None) -> None:
        self._root = root
        self._blobs = blobs or root / "blobs"

    def image(self, name: str = "") -> LayoutImage:
        """The image called ``name``, or the only one. Raises ``BuildError``."""
        manifest = self._manifest(name)
        assert manifest.config is not None
        document = self._document(manifest.config, _ImageDocument)
        diff_ids = document.rootfs.diff_ids
        if len(diff_ids) != len(manifest.layers):
            raise BuildError(f"{self._root}: the image's configuration is not about its layers")
        layers: list[tuple[str, Path]] = []
        chain = ""
        for diff_id, descriptor in zip(diff_ids, manifest.layers, strict=True):
            chain = layer_key("oci", chain, diff_id)
            layers.append((descriptor.annotation(LAYER_KEY) or chain, self._blob(descriptor)))
        records = (manifest.annotations or {}).get(RECORDS, "")
        data = self._blob(_Descriptor(records)).read_bytes() if records else b""
        return LayoutImage(_config_of(document.config or _RunConfig()), layers, data)

    def _manifest(self, name: str) -> _Manifest:
        try:
            index = msgspec.json.decode((self._root / "index.json").read_bytes(), type=_Manifest)
        except (OSError, *UNREADABLE) as error:
            raise BuildError(f"{self._root} is not an OCI image layout: {error}") from None
        for descriptor in index.manifests:
            if name and descriptor.annotation(_REF_NAME) != name:
                continue
            document = self._document(descriptor, _Manifest)
            if document.manifests:
                chosen = _of_platform(document.manifests)
                document = self._document(chosen, _Manifest) if chosen else document
            if document.config is not None:
                return document
        raise BuildError(f"{self._root} has no image {name or 'for linux/amd64'}")

    def _document(self, descriptor: _Descriptor, kind: type[T]) -> T:
        path = self._blob(descriptor)
        if path.stat().st_size > _DOCUMENT_BYTES_MAX:
            raise BuildError(f"{path.name} is too large for a description of an image")
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except UNREADABLE as error:
            raise BuildError(f"{path.name} does not describe an image: {error}") from None

    def _blob(self, descriptor: _Descriptor) -> Path:
        algorithm, _, digest = descriptor.digest.partition(":")
        if algorithm not in ("sha256", "sha512") or not digest.isalnum():
            raise BuildError(f"{descriptor.digest!r} is not a digest")
        path = self._blobs / algorithm / digest
        if not path.is_file():
            raise BuildError(f"{self._root} lacks the blob {algorithm}:{digest}")
        return path


def _of_platform(entries: Sequence[_Descriptor]) -> _Descriptor | None:
    for entry in entries:
        platform = entry.platform or _Platform()
        if (platform.os, platform.architecture) == ("linux", "amd64"):
            return entry
    return entries[0] if len(entries) == 1 else None


def take_layers(image: LayoutImage, store: LayerStore, what: str, now: float) -> list[str]:
    """Have the image's layers in ``store``; their keys. Blocks. Raises ``BuildError``."""
    parent = ""
    for key, file in image.layers:
        if not store.has(key):
            work = store.new_work()
            try:
                untar(file, work / "upper", layer=True)
                store.commit_now(
                    work / "upper",
                    key,
                    LayerMetadata(parent=parent, instruction=f"layer of {what}", created_at=now),
                )
            finally:
                remove_tree(work)
        parent = key
    return [key for key, _ in image.layers]


def unpack_archive(archive: Path, target: Path) -> None:
    """Unpack an OCI archive (a tar of a layout). Raises ``BuildError``."""
    untar(archive, target)


# ── configuration ───────────────────────────────────────────────────────────────────────────────


def _config_of(config: _RunConfig) -> ImageConfig:
    """The configuration of an OCI image as the link carries it."""
    pairs = [item.partition("=") for item in config.env or []]
    return ImageConfig(
        env={name: value for name, _, value in pairs},
        workdir=config.working_dir or "",
        user=config.user or "",
        entrypoint=config.entrypoint or [],
        cmd=config.cmd or [],
        shell=config.shell or [],
        labels=config.labels or {},
        ports=list(config.exposed_ports or {}),
        volumes=list(config.volumes or {}),
        stop_signal=config.stop_signal or "",
        healthcheck=(config.healthcheck.test if config.healthcheck else None) or [],
        onbuild=config.on_build or [],
    )


def _document_of(config: ImageConfig) -> Json:
    document: Json = {
        "Env": [f"{name}={value}" for name, value in config.env.items()],
        "WorkingDir": config.workdir,
        "User": config.user,
        "Entrypoint": config.entrypoint,
        "Cmd": config.cmd,
        "Shell": config.shell,
        "Labels": config.labels,
        "ExposedPorts": {port: {} for port in config.ports},
        "Volumes": {volume: {} for volume in config.volumes},
        "StopSignal": config.stop_signal,
        "OnBuild": config.onbuild,
    }
    if config.healthcheck:
        document["Healthcheck"] = {"Test": config.healthcheck}
    return {name: value for name, value in document.items() if value}


# ── writing ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class LayoutWriter:
    """Writes one image as a layout in ``root``. All methods block."""

    root: Path
    _layers: list[Json] = field(default_factory=list[Json])
    _diff_ids: list[str] = field(default_factory=list[str])

    def add_layer(self, key: str, tree: Path) -> None:
        """Add the next layer."""
        folder = self.root / "blobs" / "sha256"
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / "writing"
        with temporary.open("wb") as file:
            packed = _Hashed(file)
            with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1, mtime=0) as zipped:
                plain = _Hashed(zipped)
                tar_layer(tree, cast("Any", plain))
        digest = packed.digest.hexdigest()
        size = temporary.stat().st_size
        temporary.replace(folder / digest)
        self._diff_ids.append(f"sha256:{plain.digest.hexdigest()}")
        self._layers.append(
            {
                "mediaType": _LAYER,
                "digest": f"sha256:{digest}",
                "size": size,
                "annotations": {LAYER_KEY: key},
            }
        )

    def finish(self, name: str, config: ImageConfig, records: bytes) -> None:
        """Write the descriptions."""
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": _document_of(config),
            "rootfs": {"type": "layers", "diff_ids": self._diff_ids},
            "history": [{"created_by": "homeport"} for _ in self._diff_ids],
        }
        manifest: Json = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._blob(_CONFIG, json.dumps(document).encode()),
            "layers": self._layers,
        }
        if records:
            blob = self._blob("application/octet-stream", records)
            manifest["annotations"] = {RECORDS: blob["digest"]}
        descriptor = self._blob(_MANIFEST, json.dumps(manifest).encode())
        descriptor["annotations"] = {_REF_NAME: name}
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [descriptor]}
        (self.root / "index.json").write_text(json.dumps(index))
        (self.root / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))

    def _blob(self, kind: str, data: bytes) -> Json:
        digest = hashlib.sha256(data).hexdigest()
        folder = self.root / "blobs" / "sha256"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


class _Hashed:
    """Passes writes on and hashes them."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def write_archive(
    file: Path,
    name: str,
    layers: Sequence[tuple[str, Path]],
    config: ImageConfig,
    records: bytes,
    work: Path,
) -> None:
    """Write an image as an OCI archive. Blocks."""
    writer = LayoutWriter(work)
    for key, tree in layers:
        writer.add_layer(key, tree)
    writer.finish(name, config, records)
    temporary = file.with_name(file.name + ".partial")
    with tarfile.open(temporary, "w") as tar:
        for path in sorted(work.rglob("*")):
            tar.add(path, path.relative_to(work).as_posix(), recursive=False)
    temporary.replace(file)
