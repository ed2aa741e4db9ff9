"""Buckets of object stores in containers, by ``rclone mount``.

rclone runs on the node, with the bucket's credentials, which the container never sees. Its mount
is taken off the node's file system at once and lives in the container alone: when the container's
last process is gone the kernel ends it, rclone uploads what is left, and exits.

What is not uploaded yet is on the disk, in rclone's cache. The node keeps that until the bucket has it,
over its own death too.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from homeport.kernel.decoding import UNREADABLE
from homeport.kernel.errors import InvalidError, UnavailableError
from homeport.link.messages import BucketRef
from homeport.node.layers import remove_tree
from homeport.node.runtime import linux
from homeport.node.runtime.port import Bind, Tree

log = structlog.get_logger(__name__)

START_S: Final = 30.0
FLUSH_S: Final = 600.0
"""How long the upload of what an ended container wrote may take."""
SETTLE_S: Final = 60.0
"""How long the start of a container waits for what an earlier node left for its bucket."""
ATTEMPTS: Final = 5
RETRY_S: Final = 1.0
"""Between two attempts to upload, then doubled: rclone has repeated each request before."""
_REF: Final = "bucket"
_NONCE_BYTES: Final = 12
_REMOTE: Final = "bucket"
_LOG_BYTES: Final = 2_000
_READY: Final = b"READY=1"
_KEPT_VARIABLES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")
_PROVIDERS: Final = {"s3": "AWS", "r2": "Cloudflare", "gcp": "Other"}
_GCS_ENDPOINT: Final = "https://storage.googleapis.com"


class MountedBucket:
    """One bucket, mounted nowhere yet but ready to be placed in a container."""

    def __init__(
        self,
        ref: BucketRef,
        folder: Path,
        process: asyncio.subprocess.Process,
        tree: int,
        on_left: Callable[[BucketRef, Path], None],
    ) -> None:
        self._ref = ref
        self._folder = folder
        self._process = process
        self._tree = tree
        self._on_left = on_left

    def bind(self) -> Bind:
        """An empty directory in its place, until it is placed there."""
        return Bind(self._folder / "gate", self._ref.path)

    def tree(self) -> Tree:
        """The mount."""
        return Tree(self._tree, self._ref.path)

    async def close(self) -> None:
        """Let rclone upload what is left and end; the container is gone.

        What could not be uploaded, or was not before this was cancelled, stays in the folder.
        """
        if self._tree >= 0:
            os.close(self._tree)
            self._tree = -1
        try:
            await _ended(self._process, FLUSH_S)
        finally:
            await _killed(self._process)
        if await _uploaded(self._ref, self._folder):
            await asyncio.to_thread(remove_tree, self._folder)
        else:
            self._on_left(self._ref, self._folder)


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


class Buckets:
    """The buckets that containers of a node have mounted, each in a folder of its own below ``root``.

    A folder is there until all that was written to the bucket is in it: what a node that was killed
    left is uploaded by the next one, before it mounts the same bucket again. ``key`` gives what seals
    the credentials in the folder meanwhile.
    """

    def __init__(self, root: Path, key: Callable[[], str]) -> None:
        self._root = root.absolute()
        self._key = key
        self._left: dict[Path, BucketRef] = {}
        """Folders with something that is not uploaded, as far as it can be."""
        self._tasks: dict[Path, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Take up, in the background, what an earlier node left."""
        for folder in sorted(self._root.iterdir()) if self._root.is_dir() else ():
            self._take_up(folder, self._ref(folder))

    async def stop(self) -> None:
        """End what is under way; the next start goes on with it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def mount(self, refs: Sequence[BucketRef], name: str) -> ContainerBuckets:
        """Mount buckets for one container called ``name``; close what is returned.

        Raises ``UnavailableError`` if this node cannot, ``InvalidError`` with rclone's own words.
        """
        outcomes = await asyncio.gather(
            *(self._mount(ref, self._root / f"{name}.{n}") for n, ref in enumerate(refs)),
            return_exceptions=True,
        )
        buckets = ContainerBuckets([item for item in outcomes if isinstance(item, MountedBucket)])
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                await buckets.close()
                raise outcome
        return buckets

    async def _mount(self, ref: BucketRef, folder: Path) -> MountedBucket:
        await asyncio.to_thread(_program, ref)
        await self._settled(ref)
        await asyncio.to_thread(self._make, ref, folder)
        try:
            process = await _started(ref, folder, START_S)
        except BaseException:
            await asyncio.to_thread(remove_tree, folder)
            raise
        try:
            tree = await asyncio.to_thread(_take, folder / "mount")
        except BaseException:
            await _stopped(process)
            await asyncio.to_thread(remove_tree, folder)
            raise
        return MountedBucket(ref, folder, process, tree, self._leave)

    def _make(self, ref: BucketRef, folder: Path) -> None:
        folder.mkdir(parents=True, mode=0o700)
        (folder / "gate").mkdir(mode=0o755)
        if not ref.read_only:
            (folder / _REF).write_bytes(seal(ref, self._key()))

    def _leave(self, ref: BucketRef, folder: Path) -> None:
        self._left[folder] = ref

    # ── what is not uploaded yet ────────────────────────────────────────────────────────────

    def _ref(self, folder: Path) -> BucketRef | None:
        try:
            ref = unseal((folder / _REF).read_bytes(), self._key())
        except FileNotFoundError:
            return None
        if ref is None:
            log.error("a bucket's uploads are sealed with another token", folder=str(folder))
        return ref

    def _take_up(self, folder: Path, ref: BucketRef | None) -> None:
        if ref is not None:
            self._left[folder] = ref
        task = asyncio.create_task(self._finish(folder, ref))
        self._tasks[folder] = task
        task.add_done_callback(lambda _: self._tasks.pop(folder, None))

    async def _finish(self, folder: Path, ref: BucketRef | None) -> None:
        try:
            await self._finished(folder, ref)
        except OSError as error:
            log.error("a bucket's uploads cannot go on", folder=str(folder), error=str(error))

    async def _finished(self, folder: Path, ref: BucketRef | None) -> None:
        await asyncio.to_thread(_detach, folder / "mount")
        await _left_to_end(folder)
        unsaved = await asyncio.to_thread(_is_unsaved, folder)
        if unsaved and ref is not None:
            unsaved = not await _uploaded(ref, folder)
        if not unsaved:
            self._left.pop(folder, None)
            await asyncio.to_thread(remove_tree, folder)

    async def _settled(self, ref: BucketRef) -> None:
        """Until what was left for this bucket is in it, or it is clear that it takes long."""
        mine = [folder for folder, left in self._left.items() if _place(left) == _place(ref)]
        for folder in mine:
            if folder not in self._tasks:  # it failed, so it is tried once more
                self._take_up(folder, self._left[folder])
        if not mine:
            return
        await asyncio.wait([self._tasks[folder] for folder in mine], timeout=SETTLE_S)
        if any(folder in self._left for folder in mine):
            log.warning(
                "a bucket is mounted before all of an earlier container is in it",
                bucket=ref.bucket,
            )


def _place(ref: BucketRef) -> tuple[str, str, str]:
    return ref.kind, ref.endpoint_url, ref.bucket


def seal(ref: BucketRef, key: str) -> bytes:
    """``ref``, with its credentials, for the disk; readable with the same ``key``."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + _cipher(key).encrypt(nonce, msgspec.msgpack.encode(ref), None)


def unseal(data: bytes, key: str) -> BucketRef | None:
    """What was sealed; ``None`` if it was with another key, or is damaged."""
    try:
        plain = _cipher(key).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None)
        return msgspec.msgpack.decode(plain, type=BucketRef)
    except (InvalidTag, *UNREADABLE):
        return None


def _cipher(key: str) -> AESGCM:
    return AESGCM(hashlib.sha256(b"homeport buckets\0" + key.encode()).digest())


async def _uploaded(ref: BucketRef, folder: Path) -> bool:
    """Upload what the folder's cache still has for the bucket; whether all of it is there now.

    rclone uploads what a cache has at its start, before it says that it is ready.
    """
    pause = RETRY_S
    for attempt in range(ATTEMPTS):
        if not await asyncio.to_thread(_is_unsaved, folder):
            return True
        if attempt:
            await asyncio.sleep(pause)
            pause *= 2
        try:
            process = await _started(ref, folder, FLUSH_S)
        except (InvalidError, UnavailableError, OSError):
            continue  # its words are in the log of the folder
        try:
            await asyncio.to_thread(_detach, folder / "mount")
            await _ended(process, FLUSH_S)
        finally:
            await _killed(process)
    if not await asyncio.to_thread(_is_unsaved, folder):
        return True
    log.error(
        "what was written to a bucket could not be uploaded; it is kept and tried again when the "
        "bucket is mounted and when the node starts",
        bucket=ref.bucket,
        folder=str(folder),
        rclone=_tail(folder),
    )
    return False


async def _started(ref: BucketRef, folder: Path, timeout_s: float) -> asyncio.subprocess.Process:
    """rclone with the bucket mounted at ``mount``. Raises ``InvalidError`` with its words."""
    program = await asyncio.to_thread(_program, ref)
    for name in ("mount", "cache"):
        (folder / name).mkdir(exist_ok=True, mode=0o755)
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
            await _until_ready(notifications, process, ref, folder, timeout_s)
        except BaseException:
            await _stopped(process)
            await asyncio.to_thread(_detach, folder / "mount")
            raise
    return process


async def _killed(process: asyncio.subprocess.Process) -> None:
    """See that the process is gone, also when what waited for it was cancelled."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _stopped(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    await _ended(process, START_S)


async def _left_to_end(folder: Path) -> None:
    """Until the rclone of a node that was killed has uploaded all and ended, if it still runs."""
    pid = await asyncio.to_thread(running, folder)
    if not pid:
        return
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        async with asyncio.timeout(FLUSH_S):
            await over.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def running(folder: Path) -> int:
    """The process id of the rclone whose cache is below ``folder``; 0 = there is none."""
    wanted = os.fsencode(folder.absolute()) + b"/"
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if b"--cache-dir" in words and any(word.startswith(wanted) for word in words):
                    return int(entry)
    return 0


def _detach(place: Path) -> None:
    """Unmount ``place`` if something is mounted there: it ends with its last user."""
    with contextlib.suppress(OSError):
        linux.unmount(str(place))


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
    timeout_s: float,
) -> None:
    ready = asyncio.ensure_future(notifications.ready())
    ended = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait([ready, ended], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
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


def _is_unsaved(folder: Path) -> bool:
    """Whether rclone's records of cached files name one that is not uploaded."""
    for record in (folder / "cache" / "vfsMeta").rglob("*"):
        with contextlib.suppress(OSError, *UNREADABLE):
            if record.is_file() and msgspec.json.decode(record.read_bytes()).get("Dirty"):
                return True
    return False
