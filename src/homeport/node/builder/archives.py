"""Tar archives and layers: unpacked with owners, modes and deletions, packed the same way."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable, Generator
from pathlib import Path, PurePosixPath
from typing import IO

from homeport.node.builder.errors import BuildError
from homeport.node.builder.merged import is_opaque, is_whiteout

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
OPAQUE_XATTR = "user.overlay.opaque"
"""``y`` marks a directory of a layer that hides the lower one's entries."""
_ZSTD = b"\x28\xb5\x2f\xfd"
_XATTR = "SCHILY.xattr."
_KEPT_XATTRS = ("security.capability",)


def untar(archive: Path, target: Path, *, layer: bool = False) -> dict[str, tuple[int, int]]:
    """Unpack ``archive`` into ``target``; the owners it names, by member.

    Nothing lands outside ``target``. As root the files get those owners. With ``layer`` the
    archive is an OCI layer: its whiteouts become an overlay's. Raises ``BuildError``.
    """
    target.mkdir(parents=True, exist_ok=True)
    owners: dict[str, tuple[int, int]] = {}
    try:
        with _opened(archive) as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if layer and name.name.startswith(_WHITEOUT):
                    _delete(target, name)
                elif str(name) not in (".", "/"):
                    owners[member.name.strip("./")] = (member.uid, member.gid)
                    _extract(tar, member, target)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise BuildError(f"{archive.name} cannot be unpacked: {error}") from error
    return owners


@contextlib.contextmanager
def _opened(archive: Path) -> Generator[tarfile.TarFile]:
    with archive.open("rb") as file:
        start = file.read(4)
    if start != _ZSTD:
        with tarfile.open(archive) as tar:
            yield tar
        return
    try:
        process = subprocess.Popen(
            ["zstd", "-dcq", "--", str(archive)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise BuildError(
            f"{archive.name} is compressed with zstd: install zstd on the node"
        ) from None
    try:
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield tar
    finally:
        process.kill()
        process.wait()


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    mode, owner = member.mode & 0o7777, (member.uid, member.gid)
    member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
    place = target / member.name.lstrip("/")
    if place.is_symlink() or (place.exists() and not (member.isdir() and place.is_dir())):
        _check_inside(place.parent, target)
        place.unlink()
    tar.extract(member, target, filter="tar")
    if os.geteuid() == 0:
        os.chown(place, *owner, follow_symlinks=False)
    if not member.issym():
        place.chmod(mode)
    for key, value in member.pax_headers.items():
        name = key.removeprefix(_XATTR)
        if name != key and name in _KEPT_XATTRS:
            with contextlib.suppress(OSError):
                os.setxattr(place, name, value.encode("utf-8", "surrogateescape"))


def _check_inside(folder: Path, target: Path) -> None:
    root = os.path.realpath(target)
    real = os.path.realpath(folder)
    if real != root and not real.startswith(root + os.sep):
        raise ValueError(f"{folder} is outside of the archive's folder")


def _delete(target: Path, name: PurePosixPath) -> None:
    """A whiteout of an OCI layer, as an overlay has it."""
    folder = target / str(name.parent).lstrip("/")
    _check_inside(folder, target)
    folder.mkdir(parents=True, exist_ok=True)
    if name.name == _OPAQUE:
        os.setxattr(folder, OPAQUE_XATTR, b"y")
        return
    place = folder / name.name.removeprefix(_WHITEOUT)
    if not place.exists() and not place.is_symlink():
        os.mknod(place, stat.S_IFCHR, 0)


def tar_layer(layer: Path, output: IO[bytes]) -> None:
    """Pack a layer of the store as an OCI layer (uncompressed), always with the same bytes."""
    with tarfile.open(fileobj=output, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        links: dict[tuple[int, int], str] = {}
        for folder, folders, names in os.walk(layer):
            folders.sort()
            here = Path(folder)
            if is_opaque(folder):
                _add_empty(tar, (here / _OPAQUE).relative_to(layer).as_posix())
            for name in sorted([*folders, *names]):
                path = here / name
                _add(tar, path, path.relative_to(layer).as_posix(), links)


def _add_empty(tar: tarfile.TarFile, name: str) -> None:
    tar.addfile(tarfile.TarInfo(name))


def _add(tar: tarfile.TarFile, path: Path, name: str, links: dict[tuple[int, int], str]) -> None:
    info = path.lstat()
    if is_whiteout(info):
        parent = PurePosixPath(name)
        _add_empty(tar, str(parent.with_name(_WHITEOUT + parent.name)))
        return
    if stat.S_ISSOCK(info.st_mode):
        return
    member = tarfile.TarInfo(name)
    member.mode, member.mtime = stat.S_IMODE(info.st_mode), int(info.st_mtime)
    member.uid, member.gid = info.st_uid, info.st_gid
    for xattr in _KEPT_XATTRS:
        with contextlib.suppress(OSError):
            value = os.getxattr(path, xattr, follow_symlinks=False)
            member.pax_headers = {_XATTR + xattr: value.decode("utf-8", "surrogateescape")}
    _fill(member, path, info, links)
    if member.type == tarfile.REGTYPE:
        with path.open("rb") as file:
            tar.addfile(member, file)
    else:
        tar.addfile(member)


def _fill(
    member: tarfile.TarInfo, path: Path, info: os.stat_result, links: dict[tuple[int, int], str]
) -> None:
    kinds: list[tuple[Callable[[int], bool], bytes]] = [
        (stat.S_ISDIR, tarfile.DIRTYPE),
        (stat.S_ISLNK, tarfile.SYMTYPE),
        (stat.S_ISFIFO, tarfile.FIFOTYPE),
        (stat.S_ISCHR, tarfile.CHRTYPE),
        (stat.S_ISBLK, tarfile.BLKTYPE),
    ]
    member.type = next((kind for test, kind in kinds if test(info.st_mode)), tarfile.REGTYPE)
    if member.type == tarfile.SYMTYPE:
        member.linkname = os.readlink(path)
    elif member.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        member.devmajor, member.devminor = os.major(info.st_rdev), os.minor(info.st_rdev)
    elif member.type == tarfile.REGTYPE:
        first = links.setdefault((info.st_dev, info.st_ino), member.name)
        if info.st_nlink > 1 and first != member.name:
            member.type, member.linkname = tarfile.LNKTYPE, first
        else:
            member.size = info.st_size
