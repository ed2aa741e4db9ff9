"""What builds keep for later ones: bounded, the oldest goes first, nothing that is in use."""

from __future__ import annotations

import asyncio
import functools
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from uv import find_uv_bin

from homeport.node import caches
from homeport.node.caches import Caches

from .builder_harness import FakeContainer, Workshop
from .builder_harness import run as in_workshop

BLOCK = 4096
OLD = 1_000_000


def put(kept: Caches, name: str, path: str, age: int, blocks: int = 10) -> Path:
    """A file of a cache that was last used at ``age``."""
    file = kept.directory(name) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(os.urandom(blocks * BLOCK))
    os.utime(file, (OLD + age, OLD))
    return file


def _file_names(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if path.is_file()]


def run(home: Path, bytes_max: int, check: Callable[[Caches], Awaitable[None]]) -> None:
    async def main() -> None:
        kept = Caches(home, bytes_max)
        await check(kept)
        await kept.stop()
        assert not (home / "cache" / "trash").exists()

    asyncio.run(main())


async def looked(kept: Caches) -> None:
    kept.look()
    await kept.stop()


def test_what_was_used_longest_ago_goes_first_whatever_it_is(tmp_path: Path) -> None:
    async def check(kept: Caches) -> None:
        blob = put(kept, caches.REGISTRY, "sha256/a", 1)
        package = put(kept, caches.APT, "trixie/bread.deb", 2)
        response = put(kept, caches.PIP, "http-v2/a/b/x", 3, blocks=1)
        body = put(kept, caches.PIP, "http-v2/a/b/x.body", 5)
        download = put(kept, caches.DOWNLOADS, "y", 4)
        newest = put(kept, caches.BYTECODE, "z", 10**9)
        await looked(kept)
        assert blob.exists()  # there is room for all
        for age, size in enumerate((10, 20, 20)):
            put(kept, caches.MOUNTS, f"m{age}/deep/file", 6 + age, blocks=size)
            for folder in (f"m{age}/deep", f"m{age}"):
                os.utime(kept.directory(caches.MOUNTS) / folder, (OLD, OLD))
        await looked(kept)
        assert not any(file.exists() for file in (blob, package, download, response, body))
        assert newest.exists()
        left = kept.directory(caches.MOUNTS)
        assert sorted(folder.name for folder in left.iterdir()) == ["m1", "m2"]
        assert sum(caches.sizes(tmp_path).values()) <= 80 * BLOCK

    run(tmp_path, 80 * BLOCK, check)


def test_what_is_in_use_stays_and_goes_when_it_is_not(tmp_path: Path) -> None:
    async def check(kept: Caches) -> None:
        used = put(kept, caches.MOUNTS, "used/file", 1, blocks=30)
        other = put(kept, caches.MOUNTS, "other/file", 2, blocks=30)
        wheel = put(kept, caches.UV, "archive-v0/a/file", 1)
        async with kept.use(caches.MOUNTS, key="used"), kept.use(caches.UV):
            await looked(kept)
            assert used.exists()
            assert wheel.exists()
            assert not other.exists()
            assert await kept.prune() == 0
        await kept.stop()
        assert not used.parent.exists()

    run(tmp_path, 20 * BLOCK, check)


def test_all_can_be_deleted_at_once(tmp_path: Path) -> None:
    async def check(kept: Caches) -> None:
        for name in caches.CONTENTS:
            put(kept, name, "archive-v0/a", 1)
        assert set(caches.sizes(tmp_path)) == set(caches.CONTENTS)
        assert await kept.prune() >= 10 * BLOCK * len(caches.CONTENTS)
        assert sum(caches.sizes(tmp_path).values()) < 10 * BLOCK * len(caches.CONTENTS)
        assert not _file_names(tmp_path)

    run(tmp_path, 2**40, check)


def test_a_step_keeps_its_directory_while_it_runs(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    async def check(shop: Workshop) -> None:
        async def behave(container: FakeContainer) -> int:
            for bind in container.spec.binds:
                if bind.target == "/kept":
                    seen.append((len(list(bind.source.iterdir())), bind.source.exists()))
                    (bind.source / f"{len(seen)}").write_bytes(b"x" * 50 * BLOCK)
                    await looked(shop.kept)
                    assert (bind.source / f"{len(seen)}").exists()
            return 0

        shop.runtime.behave = behave
        for text in ("one", "two"):
            await shop.build(f"FROM base\nRUN --mount=type=cache,target=/kept {text}\n")
            await shop.kept.stop()
        assert [count for count, _ in seen] == [0, 0]  # it was too much, and went

    in_workshop(tmp_path, check, caches_bytes_max=20 * BLOCK)


# ── with the real tools ─────────────────────────────────────────────────────────────────────────


class _Index(http.server.SimpleHTTPRequestHandler):
    """Lets its answers be kept, as indexes of packages do."""

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "max-age=600, public")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]


@contextmanager
def index(root: Path, *names: str) -> Iterator[tuple[str, list[str]]]:
    """An index with packages of these names: its URL, and what is asked for."""
    for name in names:
        _wheel(root / "simple" / name, name)
    handler = functools.partial(_Index, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/simple", server.asked  # type: ignore[attr-defined]
        server.shutdown()


def _wheel(folder: Path, name: str) -> None:
    folder.mkdir(parents=True)
    file = f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    contents = {
        f"{name}/__init__.py": b"",
        f"{name}/data.bin": os.urandom(200 * BLOCK),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    contents[f"{info}/RECORD"] = "".join(f"{n},,\n" for n in (*contents, f"{info}/RECORD")).encode()
    with zipfile.ZipFile(folder / file, "w") as archive:
        for path, data in contents.items():
            archive.writestr(path, data)
    (folder / "index.html").write_text(f'<a href="{file}">{file}</a>')


def _uv(url: str, cache: Path, target: Path) -> None:
    uv = [find_uv_bin(), "pip", "install", "--no-config", "--link-mode=copy"]
    uv += ["--python", sys.executable, "--cache-dir", str(cache), "--default-index", url]
    _install([*uv, "--target", str(target), "bread", "salt"])


def _pip(url: str, cache: Path, target: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--isolated", "install", "--disable-pip-version-check"]
    pip += ["--quiet", "--cache-dir", str(cache), "--index-url", url, "--no-compile"]
    pip += ["--trusted-host", url.split("/")[2]]
    _install([*pip, "--target", str(target), "bread", "salt"])


def _install(command: list[str]) -> None:
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "install"), [(caches.UV, _uv), (caches.PIP, _pip)])
def test_a_tool_finds_its_cache_whole_when_a_part_went(
    tmp_path: Path, name: str, install: Callable[[str, Path, Path], None]
) -> None:
    async def check(kept: Caches) -> None:
        cache = kept.directory(name)
        with index(tmp_path / "index", "bread", "salt") as (url, asked):
            install(url, cache, tmp_path / "first")
            salt, bread = (_holders(cache, tmp_path / "first" / x) for x in ("salt", "bread"))
            assert len(salt) == len(bread) == 1
            for path in cache.rglob("*"):
                os.utime(path, (OLD, OLD), follow_symlinks=False)
            os.utime(salt[0], (OLD + 100, OLD))
            await looked(kept)
            assert salt[0].exists()
            assert not bread[0].exists()
            asked.clear()
            install(url, cache, tmp_path / "second")
        for package in ("bread", "salt"):
            whole = (tmp_path / "first" / package / "data.bin").read_bytes()
            assert (tmp_path / "second" / package / "data.bin").read_bytes() == whole
        wheels = [path for path in asked if path.endswith(".whl")]
        assert wheels
        assert all("bread" in path for path in wheels)

    run(tmp_path / "builder", 350 * BLOCK, check)


def _holders(cache: Path, package: Path) -> list[Path]:
    """The cached files with what was installed for the package, unpacked or not."""
    data = (package / "data.bin").read_bytes()
    return [
        path
        for path in cache.rglob("*")
        if path.is_file() and not path.is_symlink() and data in path.read_bytes()
    ]
