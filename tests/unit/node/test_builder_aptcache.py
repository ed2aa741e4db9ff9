"""Packages that apt downloads are kept, and no image has them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from homeport.node.caches import APT

from .builder_harness import FakeContainer, Workshop, run

ARCHIVES = "/var/cache/apt/archives"
CLEAN = "/etc/apt/apt.conf.d/docker-clean"
INSTALL = "apt-get update && apt-get install -y bread"
TELLS_TO_DELETE = (
    'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };\n'
    'APT::Update::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };\n'
    'Dir::Cache::pkgcache "";\n'
)


class Apt:
    """Downloads what is not there; ``seen`` is what it found, ``told`` its configuration."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.seen: list[list[str]] = []
        self.told = ""

    async def __call__(self, container: FakeContainer) -> int:
        binds = {bind.target: bind for bind in container.spec.binds}
        if ARCHIVES not in binds:
            return 0
        archives = binds[ARCHIVES].source
        self.seen.append(sorted(file.name for file in archives.glob("*.deb")))
        assert (archives / "partial").is_dir()
        if CLEAN in binds:
            self.told = binds[CLEAN].source.read_text()
        for name in self.names:
            if not (archives / name).exists():
                (archives / name).write_text("a package" * 100)
        (archives / "hostile.deb").symlink_to("/etc/passwd")
        return 0


async def _base(shop: Workshop, release: str = "trixie") -> None:
    root = shop.layers.path("base-layer")
    for name, text in {
        f"{ARCHIVES}/partial/.keep": "",
        CLEAN: TELLS_TO_DELETE,
        "/etc/os-release": release,
    }.items():
        file = root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_what_was_downloaded_is_there_the_next_time(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        await _base(shop)
        shop.runtime.behave = apt = Apt("bread_1_amd64.deb", "salt_1_amd64.deb")
        made = await shop.build(f"FROM base\nRUN {INSTALL}\n", no_cache=True)
        await shop.build(f"FROM base\nRUN {INSTALL}\n", no_cache=True)
        assert apt.seen == [[], list(apt.names)]
        assert "Post-Invoke" not in apt.told
        assert "pkgcache" in apt.told
        assert not any("apt" in name for name in shop.tree(made))
        await _base(shop, "bookworm")  # whose packages of these names are others
        await shop.build(f"FROM base\nRUN {INSTALL}\n", no_cache=True)
        assert apt.seen[2] == []

    run(tmp_path, check)


@pytest.mark.parametrize(
    "command",
    [
        "echo apt-get; install x y",
        f"rm -rf /var/cache/apt && {INSTALL}",
        f"rm -f {CLEAN}; {INSTALL}",
        "apt-get install --download-only bread",
        f"APT_CONFIG=/mine {INSTALL}",
    ],
)
def test_commands_with_plans_of_their_own_are_left_alone(tmp_path: Path, command: str) -> None:
    async def check(shop: Workshop) -> None:
        await _base(shop)
        shop.runtime.behave = apt = Apt("bread_1_amd64.deb")
        await shop.build(f"FROM base\nRUN {command}\n")
        await shop.build(f"FROM base\nRUN --mount=type=cache,target=/x {INSTALL}\n")
        await shop.build(f"FROM base\nUSER worker\nRUN {INSTALL}\n")
        assert apt.seen == []

    run(tmp_path, check)


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        await _base(shop)
        for name in ("a_1.deb", "b_1.deb", "c_1.deb"):
            shop.runtime.behave = Apt(name)
            await shop.build(f"FROM base\nRUN {INSTALL}\n", no_cache=True)
            await shop.kept.stop()
            for number, file in enumerate(sorted(shop.kept.directory(APT).rglob("*.deb"))):
                os.utime(file, (1000 + number, 1000))
        kept = shop.kept.directory(APT).rglob("*.deb")
        assert sorted(file.name for file in kept) == ["b_1.deb", "c_1.deb"]

    directories = 4  # of apt and its release, of pip and uv
    run(tmp_path, check, caches_bytes_max=(2 + directories) * 4096 + 3000)
