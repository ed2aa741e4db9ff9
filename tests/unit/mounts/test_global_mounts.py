"""The platform's own mounts, as far as they need no package index."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import stat
import sys
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from homeport import pythons
from homeport.kernel.errors import NotFoundError
from homeport.mounts import global_mounts
from homeport.mounts.global_mounts import GlobalMounts
from homeport.storage.blobs import FileStore

INSTALLED = importlib.metadata.version("modal")


def run(path: Path, check: Callable[[GlobalMounts, FileStore], Awaitable[None]]) -> None:
    async def main() -> None:
        files = FileStore(path / "blobs")
        files.prepare()
        try:
            await check(GlobalMounts(files), files)
        finally:
            files.close()

    asyncio.run(main())


def fake_uv(path: Path, script: str) -> str:
    file = path / "uv"
    file.write_text(f"#!{sys.executable}\nimport sys, pathlib\narguments = sys.argv[1:]\n{script}")
    file.chmod(stat.S_IRWXU)
    return str(file)


def test_the_installed_client_needs_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(global_mounts, "find_uv_bin", lambda: fake_uv(tmp_path, "sys.exit(9)"))

    async def check(mounts: GlobalMounts, files: FileStore) -> None:
        manifest = {file.name: file for file in await mounts.client_mount(INSTALLED)}
        for package in ("modal", "modal_proto", "modal_version", "synchronicity"):
            assert f"/pkg/{package}/__init__.py" in manifest
        assert not [name for name in manifest if name.endswith(".pyc") or "/." in name]
        init = manifest["/pkg/modal/__init__.py"]
        data = files.path(init.sha256).read_bytes()
        assert len(data) == init.size
        assert init.mode == 0o644

    run(tmp_path, check)


@pytest.mark.parametrize("version", ["9.9.9", "1.0; import os", "../1.0", ""])
def test_versions_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    script = "print('no version of it', file=sys.stderr); sys.exit(1)"
    monkeypatch.setattr(global_mounts, "find_uv_bin", lambda: fake_uv(tmp_path, script))

    async def check(mounts: GlobalMounts, _files: FileStore) -> None:
        with pytest.raises(NotFoundError, match="client"):
            await mounts.client_mount(version)

    run(tmp_path, check)


@pytest.mark.parametrize(
    ("builder", "python"), [("2030.01", "3.11"), ("../x", "3.11"), ("2025.06", "x")]
)
def test_sets_of_dependencies_that_do_not_exist(tmp_path: Path, builder: str, python: str) -> None:
    async def check(mounts: GlobalMounts, _files: FileStore) -> None:
        with pytest.raises(NotFoundError):
            await mounts.deps_mount(builder, python)

    run(tmp_path, check)


_INSTALLS = """
if arguments[1] == "compile":
    out = pathlib.Path(arguments[arguments.index("-o") + 1])
    assert "certifi==" in out.read_text()
    names = pathlib.Path(arguments[-1]).read_text()  # first the same release, then any
    pinned = [line for line in names.splitlines() if line.startswith("certifi")]
    assert pinned[0].split(" ")[0].endswith(".*"), pinned
    out.write_text("certifi==2")
    sys.exit(0)
wanted = pathlib.Path(arguments[arguments.index("-r") + 1]).read_text()
if wanted != "certifi==2":
    print("no version of certifi==1", file=sys.stderr)
    sys.exit(1)
target = pathlib.Path(arguments[arguments.index("--target") + 1])
(target / "certifi/__pycache__").mkdir(parents=True)
(target / "certifi/__init__.py").write_text("")
(target / "certifi/__pycache__/x.pyc").write_text("")
(target / "bin").mkdir()
(target / "bin/tool").write_text("")
(target / "one.so").write_text("")
(target / "one.so").chmod(0o755)
(target / "asked").write_text(arguments[arguments.index("--python-version") + 1])
"""


def test_a_withdrawn_pin_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(global_mounts, "find_uv_bin", lambda: fake_uv(tmp_path, _INSTALLS))

    async def check(mounts: GlobalMounts, files: FileStore) -> None:
        manifest = {file.name: file for file in await mounts.deps_mount("2025.06", "3.12")}
        assert set(manifest) == {
            "/__modal/deps/certifi/__init__.py",
            "/__modal/deps/one.so",
            "/__modal/deps/asked",
            "/pkg/sitecustomize.py",
        }
        assert manifest["/__modal/deps/one.so"].mode == 0o755
        assert files.path(manifest["/__modal/deps/asked"].sha256).read_text() == "3.12"
        code = files.path(manifest["/pkg/sitecustomize.py"].sha256).read_text()
        path = list(sys.path)
        try:
            exec(code, {})
            exec(code, {})
            assert sys.path == [*path, "/__modal/deps"]
        finally:
            sys.path[:] = path

    run(tmp_path, check)


def test_uv_is_not_left_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"import os, time; pathlib.Path(r'{tmp_path}/pid').write_text(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(global_mounts, "find_uv_bin", lambda: fake_uv(tmp_path, script))

    async def check(mounts: GlobalMounts, _files: FileStore) -> None:
        asking = asyncio.create_task(mounts.client_mount("9.9.9"))
        pid = tmp_path / "pid"
        while not (pid.exists() and pid.read_text()):
            await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)

    run(tmp_path, check)


def _prefix(root: Path) -> Path:
    """A CPython as uv installs it, as far as anyone looks."""
    prefix = root / "cpython-3.12.9-linux"
    for name, text in {
        "include/python3.12/patchlevel.h": '#define PY_VERSION "3.12.9"\n',
        "bin/python3.12": "binary",
        "lib/python3.12/os.py": "",
    }.items():
        file = prefix / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (prefix / "bin/python3.12").chmod(0o755)
    bundled = prefix / "lib/python3.12/ensurepip/_bundled"
    bundled.mkdir(parents=True)
    with zipfile.ZipFile(bundled / "pip-25.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pip/__init__.py", "")
    return prefix


@pytest.mark.parametrize(("release", "has_link"), [("20240107", False), ("20261021", True)])
def test_a_python_to_add_to_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, has_link: bool
) -> None:
    prefix = _prefix(tmp_path)

    async def host_pythons() -> list[pythons.HostPython]:
        return [python for python in [pythons.inspect_prefix(prefix)] if python is not None]

    monkeypatch.setattr(pythons, "host_pythons", host_pythons)

    async def check(mounts: GlobalMounts, files: FileStore) -> None:
        manifest = {file.name: file for file in await mounts.python_mount(f"{release}.3.12.1-gnu")}
        assert manifest["/python/bin/python3"].mode == 0o755
        assert ("/python/bin/python" in manifest) == has_link
        assert "/python/lib/python3.12/site-packages/pip/__init__.py" in manifest
        pip = files.path(manifest["/python/bin/pip3.12"].sha256).read_text()
        assert pip.startswith("#!/usr/local/bin/python3\n")
        for name in ("20240107.3.12.1-musl", "20251205.3.14.2t-gnu", "3.12"):
            with pytest.raises(NotFoundError, match="could be added"):
                await mounts.python_mount(name)

    run(tmp_path, check)
