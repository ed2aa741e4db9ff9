"""Image builds in real containers: on a tiny base, and from nothing to ``pip install``."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.contract.containers import make_layer

from homeport.kernel.resources import Limits
from homeport.link.messages import BuildFile
from homeport.node.builder import BuildError
from homeport.node.builder.hostenv import read_host
from homeport.node.leaks import find_leaks
from homeport.node.runtime.create import create_runtime

from .builder_harness import BASE, Workshop

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root"),
]
needs_busybox = pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox-static")


def run(home: Path, check: Callable[[Workshop], Awaitable[None]], **changes: Any) -> None:
    """Run ``check`` in a workshop whose containers are real and whose base is busybox."""

    async def main() -> None:
        runtime = await create_runtime("", home / "run", "no-builder")
        try:
            shop = Workshop(home, runtime=runtime, **changes)
            if shutil.which("busybox") is not None:
                await shop.base()
                shutil.rmtree(shop.layers.path(BASE))
                shutil.move(make_layer(home / "busybox"), shop.layers.path(BASE))
            for path in shop.left_over():
                path.rmdir()
            await check(shop)
            assert shop.left_over() == []
        finally:
            await runtime.close()

    home.mkdir(exist_ok=True)
    asyncio.run(main())
    assert find_leaks(home) == []


@needs_busybox
def test_layers_hold_what_each_step_changed(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        outcome = await shop.build(
            "FROM base\nCOPY a /srv/a\nWORKDIR /srv\nRUN cat a > b && mkdir gone && touch gone/x\n"
            "RUN rm -r gone && mv b c\nUSER worker\nRUN id -un > /tmp/who || id -un > /dev/stderr\n"
            'RUN ["/bin/sh", "-c", "test $(cat /srv/c) = data && test ! -e /srv/gone"]\n',
            context_files=[BuildFile("a", b"data")],
        )
        assert shop.tree(outcome, 1) == {"srv/a": "data"}
        assert shop.tree(outcome, 2) == {"srv/b": "data", "srv/gone/x": ""}
        assert shop.tree(outcome, 3) == {"srv/c": "data"}
        assert "worker" in shop.text()
        assert shop.tree(outcome, 5) == {}

    run(tmp_path / "home", check)


@needs_busybox
def test_output_and_exit_code_of_a_failure(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        with pytest.raises(BuildError) as caught:
            await shop.build("FROM base\nRUN echo to out; echo to err >&2; exit 3\n")
        assert "returned exit code 3" in caught.value.message
        assert "to out" in caught.value.message
        assert {(e.fd, e.data) for e in shop.logs} >= {(1, "to out\n"), (2, "to err\n")}
        with pytest.raises(BuildError, match=r"its container did not start|returned exit code"):
            await shop.build('FROM base\nRUN ["/no/such/program"]\n')

    run(tmp_path / "home", check)


@needs_busybox
def test_here_documents_run_in_the_shell(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        outcome = await shop.build(
            "FROM base\nENV A=1\nRUN <<EOF\necho $A > /one\necho two > /two\nEOF\n"
            "RUN cat <<'X' > /three\n$A\nX\n"
        )
        assert shop.tree(outcome, 1) == {"one": "1\n", "two": "two\n"}
        assert shop.tree(outcome, 2) == {"three": "$A\n"}

    run(tmp_path / "home", check)


@needs_busybox
def test_a_cancelled_build_leaves_no_process(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        build = asyncio.create_task(shop.build("FROM base\nRUN echo up; sleep 1000 & sleep 1000\n"))
        while "up\n" not in shop.text():
            await asyncio.sleep(0.01)
        build.cancel()
        with pytest.raises(asyncio.CancelledError):
            await build

    run(tmp_path / "home", check)


@needs_busybox
def test_processes_and_memory_are_bounded(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        with pytest.raises(BuildError, match=r"returned exit code|killed by signal"):
            await shop.build(
                "FROM base\nRUN for i in $(seq 200); do sleep 60 & done; wait\n",
                limits=Limits(pids=32),
            )
        with pytest.raises(BuildError, match="ran out of memory"):
            await shop.build(
                "FROM base\nRUN x=0123456789abcdef; while true; do x=$x$x; done\n",
                limits=Limits(memory_mb=64),
            )

    run(tmp_path / "home", check)


@needs_busybox
def test_directories_for_caching_are_kept_as_far_as_there_is_room(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        def step(name: str, command: str) -> str:
            return f"RUN --mount=type=cache,target=/{name} {command}\n"

        fill = step("much", "head -c 3000000 /dev/zero > /much/a && test -s /much/a")
        await shop.build("FROM base\n" + step("little", "echo kept > /little/a"))
        outcome = await shop.build(
            "FROM base\n" + fill + step("much", "ls /much > /a") + step("little", "ls /little > /b")
        )
        assert [shop.tree(outcome, n) for n in (-2, -1)] == [{"a": "a\n"}, {"b": "a\n"}]
        await shop.kept.stop()
        seen = await shop.build(
            "FROM base\n" + step("much", "ls /much > /x") + step("little", "cat /little/a > /y")
        )
        assert shop.tree(seen, -2) == {"x": ""}
        assert shop.tree(seen) == {"y": "kept\n"}
        assert await shop.kept.prune() > 0
        gone = await shop.build("FROM base\n" + step("little", "ls /little > /z"))
        assert shop.tree(gone) == {"z": ""}

    run(tmp_path / "home", check, caches_bytes_max=2_000_000)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs a Debian host")
def test_a_python_image_from_nothing(tmp_path: Path) -> None:
    """Bootstraps Debian, puts a CPython on it, and the usual first steps hold."""

    async def check(shop: Workshop) -> None:
        text = (
            "FROM python:3.11-slim-bookworm\nRUN apt-get update\n"
            "RUN apt-get install -y gcc gfortran build-essential\n"
            "RUN pip install --upgrade pip wheel uv\n"
            "RUN python -m pip install six && uv pip install --system idna\n"
            "RUN python -c 'import six, idna, ssl, sqlite3, ctypes, lzma, bz2, readline, uuid'\n"
            "RUN printf 'int main(){return 0;}' > /x.c && gcc -o /x /x.c && /x\n"
            'CMD ["sleep", "1"]\n'
        )
        outcome = await shop.build(text, timeout_s=280.0)
        assert outcome.python_version.startswith("Python 3.11.")
        assert "GLIBC" in outcome.libc_version
        assert outcome.config.cmd == ["sleep", "1"]
        assert "already the newest version" in shop.text()
        shop.logs.clear()
        assert (await shop.build(text)).layers == outcome.layers
        assert shop.text().count("   cached\n") == text.count("RUN")

    run(tmp_path / "home", check, host=read_host())
