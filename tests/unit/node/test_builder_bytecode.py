"""Bytecode of what uv installs: as uv would have made it, and made once."""

from __future__ import annotations

import asyncio
import os
import py_compile
import stat
import sys
from pathlib import Path

import pytest

from homeport.node.builder.bytecode import without_compiling

from .builder_harness import BASE, FakeContainer, Workshop, run

PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
PACKAGES = f"usr/local/lib/{PYTHON}/site-packages"
INSTALL = "uv pip install --python $(command -v python) --compile-bytecode bread"
FILES = {"bread/__init__.py": "SALT = 1\n", "bread/dough.py": "def rise(): return 2\n"}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (INSTALL, "uv pip install --python $(command -v python)  bread"),
        ("/.uv/uv sync --frozen --compile-bytecode", "/.uv/uv sync --frozen "),
        (
            "uv pip install --compile-bytecode 'fastapi[all]>=1,<2' -r /.uv/0/a.txt",
            "uv pip install  'fastapi[all]>=1,<2' -r /.uv/0/a.txt",
        ),
        (f"{INSTALL} && ls", None),
        (f"{INSTALL}; ls", None),
        (f"{INSTALL} | tee log", None),
        (f"{INSTALL} $(cat more)", None),
        (f"{INSTALL}\nls", None),
        (f"{INSTALL} `cat more`", None),
        (f"{INSTALL} 'not closed", None),
        ("uv pip install bread", None),
        ("uv pip install 'a --compile-bytecode b'", None),
        ("uv pip install --target /elsewhere --compile-bytecode bread", None),
        ("uv pip install --prefix=/elsewhere --compile-bytecode bread", None),
        ("uv run --compile-bytecode bread", None),
        ("pip install --compile-bytecode bread", None),
    ],
)
def test_only_a_mere_installation_is_compiled_afterwards(
    command: str, expected: str | None
) -> None:
    less = without_compiling(["/bin/sh", "-c", command], {"PATH": "/bin"})
    assert less == (None if expected is None else ("/bin/sh", "-c", expected))


@pytest.mark.parametrize("name", ["UV_COMPILE_BYTECODE", "PYTHONPYCACHEPREFIX", "PYTHONOPTIMIZE"])
def test_wishes_of_the_image_are_left_to_uv(name: str) -> None:
    assert without_compiling(["/bin/sh", "-c", INSTALL], {name: "1"}) is None


class Installer:
    """Plays uv, and runs the compiler with the Python of this test."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        self.compilers: list[FakeContainer] = []

    async def __call__(self, container: FakeContainer) -> int:
        if "-ISB" in container.spec.command:
            self.compilers.append(container)
            return await self._compile(container)
        if "uv pip install" in container.script:
            for name, text in self.files.items():
                container.write(f"{PACKAGES}/{name}", text)
        return 0

    async def _compile(self, container: FakeContainer) -> int:
        _, options, _, script, workers = container.spec.command
        for bind in container.spec.binds:
            script = script.replace(bind.target, str(bind.source))
        process = await asyncio.create_subprocess_exec(
            sys.executable, options, "-c", script, workers
        )
        return await process.wait()


def _base(shop: Workshop) -> None:
    """Have an interpreter in the base."""
    program = shop.layers.path(BASE) / "usr" / "local" / "bin" / PYTHON
    program.parent.mkdir(parents=True)
    program.write_text("an interpreter")


def _bytecode(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.pyc")}


def test_what_was_compiled_once_is_as_python_makes_it(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        _base(shop)
        installer = Installer({**FILES, "bread/template.py": "{{ name }} = <no Python>\n"})
        shop.runtime.behave = installer
        for _ in range(2):
            made = await shop.build(f"FROM base\nRUN {INSTALL}\n", no_cache=True)
            packages = shop.layers.path(made.layers[-1]) / PACKAGES
            found = _bytecode(packages)
            assert len(found) == len(FILES)
            for name in FILES:
                expected = py_compile.compile(
                    str(packages / name), str(tmp_path / "expected.pyc"), f"/{PACKAGES}/{name}"
                )
                assert expected is not None
                stem = Path(name).stem
                (mine,) = (data for path, data in found.items() if f"/{stem}." in path)
                assert mine == await asyncio.to_thread(Path(expected).read_bytes)
        assert len(installer.compilers) == 1
        assert "3 files, 3 of them compiled now" in shop.text()
        assert "3 files, 0 of them compiled now" in shop.text()
        installs = [script for script in shop.runtime.scripts if "uv pip" in script]
        assert not any("--compile-bytecode" in script for script in installs)

    run(tmp_path / "home", check)


def test_other_sources_and_other_interpreters_are_compiled_anew(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        _base(shop)
        installer = Installer(dict(FILES))
        shop.runtime.behave = installer
        text = f"FROM base\nRUN {INSTALL}\n"
        await shop.build(text)
        installer.files = {**FILES, "bread/dough.py": "def rise(): return 3\n"}
        await shop.build(text, no_cache=True)
        assert "2 files, 1 of them compiled now" in shop.text()
        # what a later layer of the image adds is not asked, and its own interpreter is another
        assert all(len(each.spec.layers) == 1 for each in installer.compilers)
        await shop.build(
            f"FROM base\nCOPY --chmod=755 <<EOF /usr/local/bin/{PYTHON}\nmine\nEOF\nRUN {INSTALL}\n"
        )
        assert shop.text().count("2 files, 2 of them compiled now") == 2

    run(tmp_path / "home", check)


def test_nothing_is_written_outside_of_the_layer(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()

    async def check(shop: Workshop) -> None:
        _base(shop)

        class Hostile(Installer):
            async def __call__(self, container: FakeContainer) -> int:
                code = await super().__call__(container)
                if "uv pip install" in container.script:
                    package = container.spec.upper / PACKAGES / "bread"
                    (package / "__pycache__").symlink_to(outside)
                    (package / "secret.py").symlink_to("/etc/passwd")
                return code

        shop.runtime.behave = Hostile(dict(FILES))
        made = await shop.build(f"FROM base\nRUN {INSTALL}\n")
        assert list(outside.iterdir()) == []
        assert _bytecode(shop.layers.path(made.layers[-1])) == {}

    run(tmp_path / "home", check)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_directory_of_bytecode_that_was_deleted_is_a_new_one(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        _base(shop)

        class Updating(Installer):
            async def __call__(self, container: FakeContainer) -> int:
                code = await super().__call__(container)
                if "uv pip install" in container.script:
                    package = container.spec.upper / PACKAGES / "bread"
                    os.mknod(package / "__pycache__", stat.S_IFCHR, 0)
                return code

        shop.runtime.behave = Updating(dict(FILES))
        made = await shop.build(f"FROM base\nRUN {INSTALL}\n")
        folder = shop.layers.path(made.layers[-1]) / PACKAGES / "bread" / "__pycache__"
        assert len(list(folder.iterdir())) == len(FILES)
        assert os.getxattr(folder, "user.overlay.opaque") == b"y"

    run(tmp_path / "home", check)


def test_a_broken_compiler_does_not_break_the_build(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        _base(shop)

        class Broken(Installer):
            async def _compile(self, container: FakeContainer) -> int:
                return 127

        installer = Broken(dict(FILES))
        shop.runtime.behave = installer
        await shop.build(f"FROM base\nRUN {INSTALL}\n")
        # once with the interpreter's layers, once with all
        assert [len(each.spec.layers) for each in installer.compilers] == [1, 2]
        assert f"2 files below /{PACKAGES} could not be compiled" in shop.text()

    run(tmp_path / "home", check)
