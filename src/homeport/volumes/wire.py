"""Volumes as messages of the client's protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from modal_proto import api_pb2

from homeport.kernel.errors import InvalidError
from homeport.link.volumes import DIRECTORY, FILE, HASH_BYTES, SYMLINK, VolumeEntry
from homeport.objects.model import StoredObject
from homeport.objects.wire import creation_info
from homeport.volumes.model import NewFile, file_path, hex_hashes, version_of

_TYPES: Final = {
    FILE: api_pb2.FileEntry.FILE,
    DIRECTORY: api_pb2.FileEntry.DIRECTORY,
    SYMLINK: api_pb2.FileEntry.SYMLINK,
}


def version_message(item: StoredObject) -> api_pb2.VolumeFsVersion.ValueType:
    """The version as the protocol numbers it."""
    is_first = version_of(item) == 1
    return api_pb2.VOLUME_FS_VERSION_V1 if is_first else api_pb2.VOLUME_FS_VERSION_V2


def metadata(item: StoredObject) -> api_pb2.VolumeMetadata:
    """What clients keep of a volume."""
    return api_pb2.VolumeMetadata(
        version=version_message(item), name=item.name, creation_info=creation_info(item)
    )


def handle(item: StoredObject | None) -> bytes:
    """The serialized metadata of a volume; empty for none."""
    return b"" if item is None else metadata(item).SerializeToString()


def list_item(item: StoredObject) -> api_pb2.VolumeListItem:
    """With the top-level fields that clients before 1.1.2 read."""
    return api_pb2.VolumeListItem(
        label=item.name,
        volume_id=item.id,
        created_at=item.created_at,
        metadata=metadata(item),
    )


def new_file(file: api_pb2.VolumePutFiles2Request.File) -> NewFile:
    """Raises ``InvalidError`` for a hash of another length."""
    hashes = [block.contents_sha256 for block in file.blocks]
    if any(len(sha256) != HASH_BYTES for sha256 in hashes):
        raise InvalidError(f"{file.path}: contents_sha256 must be {HASH_BYTES} bytes")
    mode = file.mode if file.HasField("mode") else 0o644
    return NewFile(file_path(file.path), file.size, mode, b"".join(hashes))


def places(files: Sequence[NewFile], absent: set[str]) -> Iterator[tuple[int, int, str]]:
    """Where each missing content comes first: (file index, block index, hash in hex), in order."""
    left = set(absent)
    for file_index, file in enumerate(files):
        for block_index, sha256 in enumerate(hex_hashes(file.hashes)):
            if sha256 in left:
                left.remove(sha256)
                yield file_index, block_index, sha256


def part(size: int, start: int, length: int) -> tuple[int, int]:
    """The range of a file that a request names; length 0 means to the end."""
    start = min(start, size)
    return start, min(length or size, size - start)


def file_entry(entry: VolumeEntry) -> api_pb2.FileEntry:
    return api_pb2.FileEntry(
        path=entry.path, type=_TYPES[entry.kind], mtime=int(entry.mtime), size=entry.size
    )
