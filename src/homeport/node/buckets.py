"""Buckets of object stores in containers, by ``rclone mount``.

rclone runs on the node, with the bucket's credentials, which the container never sees. Its mount
is taken off the node's file system at once and lives in the container alone: when the container's
last process is gone the kernel ends it, rclone uploads what is left, and exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from homeport.kernel.errors import InvalidError, UnavailableError
from homeport.link.messages import BucketRef
from homeport.node.runtime import linux
from homeport.node.runtime.port import Bind, Tree

log = structlog.get_logger(__name__)

START_S: Final = 30.0
FLUSH_S: Final = 600.0
"""How long the upload of what an ended container wrote may take."""
_REMOTE: Final = "bucket"
_LOG_BYTES: Final = 2_000
_READY: Final = b"READY=1"
_KEPT_VARIABLES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")
_PROVIDERS: Final = {"s3": "AWS", "r2": "Cloudflare", "gcp": "Other"}
_GCS_ENDPOINT: Final = "https://storage.googleapis.com"


class MountedBucket:
    """One bucket, mounted nowhere yet but ready to be placed in a container."""

    def __init__(
        self, ref: BucketRef, folder: Path, process: asyncio.subprocess.Process, tree: int
    ) -> None:
        self._ref = ref
        self._folder = folder
        self._process = process
        self._tree = tree

    def bind(self) -> Bind:
        """An empty directory in its place, until it is placed there."""
        return Bind(self._folder / "gate", self._ref.path)

    def tree(self) -> Tree:
        """The mount."""
        return Tree(self._tree, self._ref.path)

    async def close(self) -> None:
        """Let rclone upload what is left and end; the container is gone. Raises nothing."""
        if self._tree >= 0:
            os.close(self._tree)
            self._tree = -1
        await _ended(self._process, FLUSH_S)
        if await asyncio.to_thread(_is_unsaved, self._folder / "cache"):
            log.error(
                "not all that a container wrote to a bucket could be uploaded",
                bucket=self._ref.bucket,
                rclone=_tail(self._folder),
            )


class ContainerBuckets:
    """All buckets of one container."""

    def __init__(self, buckets: Sequence[MountedBucket]) -> None:
        self._buckets = list(buckets)

    def binds(self) -> tuple[Bind, ...]:
        """What the container is started with."""
        return tuple(bucket.bind() for bucket in self._buckets)

    def trees(self) -> tuple[Tree, ...]:
        """What is placed in it when it starts."""
        return tuple(bucket.tree() for bucket in self._buckets)

    async def close(self) -> None:
        """Upload what is left. Idempotent."""
        buckets, self._buckets = self._buckets, []
        await asyncio.gather(*(bucket.close() for bucket in buckets))


async def mount_buckets(refs: Sequence[BucketRef], folder: Path) -> ContainerBuckets:
    """Mount buckets for one container; close what is returned. ``folder`` is its own.

    Raises ``UnavailableError`` if this node cannot, ``InvalidError`` with rclone's own words.
    """
    outcomes = await asyncio.gather(
        *(_mount(ref, folder / str(number)) for number, ref in enumerate(refs)),
        return_exceptions=True,
    )
    buckets = ContainerBuckets([item for item in outcomes if isinstance(item, MountedBucket)])
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            await buckets.close()
            raise outcome
    return buckets


async def _mount(ref: BucketRef, folder: Path) -> MountedBucket:
    program = await asyncio.to_thread(_program, ref)
    for name in ("mount", "cache", "gate"):
        (folder / name).mkdir(parents=True, mode=0o755)
    with _Notifications(folder / "notify") as notifications:
        with (folder / "log").open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                program,
                *_arguments(ref, folder),
                env={**environment(ref), "NOTIFY_SOCKET": str(notifications.path)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            await _until_ready(notifications, process, ref, folder)
            tree = await asyncio.to_thread(_take, folder / "mount")
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await _ended(process, START_S)
            raise
    return MountedBucket(ref, folder, process, tree)


def _program(ref: BucketRef) -> str:
    """Where rclone is. Raises ``UnavailableError`` saying what the node lacks."""
    found = shutil.which("rclone")
    fuse = shutil.which("fusermount3") or shutil.which("fusermount")
    if found and fuse and os.path.exists("/dev/fuse"):
        return found
    missing = "a kernel with FUSE: there is no /dev/fuse (modprobe fuse)"
    if not fuse:
        missing = "fusermount (apt-get install fuse3)"
    if not found:
        missing = "rclone (apt-get install rclone)"
    raise UnavailableError(f"the bucket {ref.bucket!r} cannot be mounted: the node lacks {missing}")


async def _until_ready(
    notifications: _Notifications,
    process: asyncio.subprocess.Process,
    ref: BucketRef,
    folder: Path,
) -> None:
    ready = asyncio.ensure_future(notifications.ready())
    ended = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait([ready, ended], timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            return
    finally:
        ready.cancel()
        ended.cancel()
    raise InvalidError(f"the bucket {ref.bucket!r} could not be mounted: {_tail(folder)}")


def _take(place: Path) -> int:
    """The mount at ``place``, mounted nowhere any more; it ends with the descriptor's last copy."""
    directory = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tree = linux.clone_mount(directory)
    finally:
        os.close(directory)
    linux.unmount(str(place))
    return tree


async def _ended(process: asyncio.subprocess.Process, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


class _Notifications:
    """The socket on which a service says that it is ready (the protocol of systemd)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def __enter__(self) -> _Notifications:
        # a socket's path has 108 bytes at most: bound under a short name, then moved
        directory = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self._socket.bind(f"/proc/self/fd/{directory}/{self.path.name}")
        finally:
            os.close(directory)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)

    async def ready(self) -> None:
        loop = asyncio.get_running_loop()
        while _READY not in await loop.sock_recv(self._socket, 4096):
            pass


def _arguments(ref: BucketRef, folder: Path) -> list[str]:
    source = f"{_REMOTE}:{ref.bucket}/{ref.key_prefix.strip('/')}".rstrip("/")
    arguments = ["mount", source, str(folder / "mount"), "--allow-other"]
    arguments += ["--cache-dir", str(folder / "cache"), "--vfs-cache-mode", "writes"]
    # uploaded as soon as a file is closed; what others wrote is seen a second later
    arguments += ["--vfs-write-back", "0s", "--dir-cache-time", "1s", "--poll-interval", "0"]
    return [*arguments, *(["--read-only"] if ref.read_only else [])]


def environment(ref: BucketRef) -> dict[str, str]:
    """rclone's configuration, and of the node's own variables what reaching the network takes.

    Raises ``InvalidError`` for a secret without the keys that this kind of bucket needs.
    """
    given = ref.credentials
    key, secret = given.get("AWS_ACCESS_KEY_ID"), given.get("AWS_SECRET_ACCESS_KEY")
    names = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    endpoint = ref.endpoint_url
    if ref.kind == "gcp":
        names = "GOOGLE_ACCESS_KEY_ID and GOOGLE_ACCESS_KEY_SECRET"
        key, secret = given.get("GOOGLE_ACCESS_KEY_ID"), given.get("GOOGLE_ACCESS_KEY_SECRET")
        endpoint = endpoint or _GCS_ENDPOINT
    if given and not (key and secret):
        raise InvalidError(f"the secret of the bucket {ref.bucket!r} lacks {names}")
    values = {
        "TYPE": "s3",
        "PROVIDER": "Other" if endpoint and ref.kind == "s3" else _PROVIDERS[ref.kind],
        "ENV_AUTH": "false",
        "NO_CHECK_BUCKET": "true",
        "ACCESS_KEY_ID": key,
        "SECRET_ACCESS_KEY": secret,
        "SESSION_TOKEN": given.get("AWS_SESSION_TOKEN"),
        "REGION": given.get("AWS_REGION") or given.get("AWS_DEFAULT_REGION"),
        "ENDPOINT": endpoint,
        # a server of one's own has no host name for each bucket
        "FORCE_PATH_STYLE": _flag(ref.force_path_style or bool(endpoint)),
        "REQUESTER_PAYS": _flag(ref.requester_pays),
    }
    config = {f"RCLONE_CONFIG_{_REMOTE.upper()}_{name}": value for name, value in values.items()}
    kept = {
        name: os.environ[name]
        for plain in _KEPT_VARIABLES
        for name in (plain, plain.lower())
        if name in os.environ
    }
    own = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/nonexistent"}
    set_values = {name: value for name, value in config.items() if value}
    return {**kept, **own, "RCLONE_CONFIG": "/notfound", **set_values}


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _tail(folder: Path) -> str:
    with contextlib.suppress(OSError):
        text = (folder / "log").read_text(errors="replace")[-_LOG_BYTES:].strip()
        return text or "rclone said nothing"
    return "rclone said nothing"


def _is_unsaved(cache: Path) -> bool:
    """Whether rclone's records of cached files name one that is not uploaded."""
    for record in (cache / "vfsMeta").rglob("*"):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            if record.is_file() and msgspec.json.decode(record.read_bytes()).get("Dirty"):
                return True
    return False
