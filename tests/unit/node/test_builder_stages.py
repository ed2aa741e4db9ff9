"""Stages, what is copied between them, mounts of RUN, what ADD fetches, triggers."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from homeport.link.messages import BuildFile, ImageConfig
from homeport.node.builder import BuildError, BuildOutcome

from .builder_harness import BASE, FakeContainer, Workshop, run

PROBE = "homeport-libc"


def host(shop: Workshop, container: FakeContainer, target: str) -> Path:
    """The host path that is mounted at ``target`` in the container."""
    found = [bind.source for bind in container.spec.binds if bind.target == target]
    assert found, [bind.target for bind in container.spec.binds]
    return found[0]


def test_only_the_stages_that_are_needed_are_built(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        outcome = await shop.build(
            "ARG TAG=base\nFROM $TAG AS one\nRUN echo one\nFROM $TAG AS two\nRUN echo two\n"
            "FROM one AS Last\nRUN echo last\n"
        )
        assert shop.runtime.scripts == ["echo one", "echo last"]
        assert len(outcome.layers) == 3
        assert outcome.config.env == {"A": "1"}

    run(tmp_path, check)


def test_files_come_from_a_stage_by_name_or_number(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        async def behave(container: FakeContainer) -> int:
            container.write("/out/bin/tool", "tool")
            container.write("/out/deep/er/x", "x")
            (container.spec.upper / "out/link").symlink_to("bin/tool")
            (container.spec.upper / "out/empty").mkdir()
            (container.spec.upper / "out/bin/tool").chmod(0o751)
            return 0

        shop.runtime.behave = behave
        outcome = await shop.build(
            "FROM base AS make\nRUN make\nFROM base\nCOPY --from=make /out /app\n"
            "COPY --from=0 /out/link /out/bin/* /flat/\n"
        )
        tree, flat = (shop.layers.path(key) for key in outcome.layers[-2:])
        assert shop.tree(outcome, -2) == {"app/bin/tool": "tool", "app/deep/er/x": "x"}
        assert os.readlink(tree / "app/link") == "bin/tool"
        assert (tree / "app/empty").is_dir()
        assert (tree / "app/bin/tool").stat().st_mode & 0o777 == 0o751
        assert shop.tree(outcome, -1) == {"flat/link": "tool", "flat/tool": "tool"}
        assert not (flat / "flat/link").is_symlink()

    run(tmp_path, check)


def test_a_copy_depends_on_what_it_copies_and_on_nothing_else(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        async def top(context: dict[str, bytes], first: str = "RUN a") -> str:
            files = [BuildFile(name, data) for name, data in context.items()]
            text = (
                f"FROM base AS s\nCOPY a /a\nFROM base\n{first}\nCOPY --from=s /a /b\nCOPY a /c\n"
            )
            return (await shop.build(text, context_files=files)).layers[-1]

        one = await top({"a": b"1"})
        assert await top({"a": b"1", "other": b"x"}) == one
        assert await top({"a": b"2"}) != one

    run(tmp_path, check)


def test_whiteouts_and_opaque_directories_hide_what_is_copied(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        async def behave(container: FakeContainer) -> int:
            upper = container.spec.upper
            (upper / "d").mkdir(parents=True)
            if container.script == "one":
                for name in ("kept", "gone"):
                    (upper / "d" / name).write_text(name)
                (upper / "o").mkdir()
                (upper / "o/old").write_text("old")
            else:
                os.mknod(upper / "d/gone", 0o20000, 0)
                (upper / "o").mkdir()
                os.setxattr(upper / "o", "user.overlay.opaque", b"y")
                (upper / "o/new").write_text("new")
            return 0

        shop.runtime.behave = behave
        outcome = await shop.build(
            "FROM base AS s\nRUN one\nRUN two\nFROM scratch\nCOPY --from=s /d /o /x/\n"
        )
        assert shop.tree(outcome) == {"x/kept": "kept", "x/new": "new"}

    if os.geteuid() == 0:
        run(tmp_path, check)


def test_globs_exclusions_and_parents(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        names = ("a1.py", "b2.py", "c.txt", "d/e/x.py", "d/e/y.md", "[z].py")
        context = [BuildFile(name, name.encode()) for name in names]

        async def copied(line: str) -> set[str]:
            outcome = await shop.build(f"FROM base\n{line}\n", context_files=context)
            return set(shop.tree(outcome))

        assert await copied("COPY [^b]*.py /t/") == {"t/a1.py", "t/[z].py"}
        assert await copied("COPY [[]z].py /t/") == {"t/[z].py"}
        assert await copied("COPY ?2.py /t/") == {"t/b2.py"}
        assert await copied("COPY --parents d/e/*.py /t/") == {"t/d/e/x.py"}
        assert await copied("COPY --parents d/./e /t/") == {"t/e/x.py", "t/e/y.md"}
        assert await copied("COPY --exclude=**/*.py --exclude=c.txt . /t/") == {"t/d/e/y.md"}

    run(tmp_path, check)


def test_mounts_of_a_run(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    async def check(shop: Workshop) -> None:
        async def behave(container: FakeContainer) -> int:
            if PROBE in container.script:
                return 0
            cache = host(shop, container, "/cache")
            seen["cache"] = sorted(path.name for path in cache.iterdir())
            (cache / container.script).touch()
            seen["bind"] = (host(shop, container, "/src") / "a").read_text()
            seen["stage"] = host(shop, container, "/from").read_text()
            secret = host(shop, container, "/run/secrets/TOKEN")
            seen["secret"] = (secret.read_text(), secret.stat().st_mode & 0o777)
            seen["env"] = container.spec.env["T"]
            seen["tmpfs"] = container.spec.tmpfs
            return 0

        shop.runtime.behave = behave
        mounts = (
            "--mount=type=cache,target=/cache,sharing=locked --mount=target=/src "
            "--mount=type=bind,from=s,source=/etc/passwd,target=/from "
            "--mount=type=secret,id=TOKEN,env=T,target=/run/secrets/TOKEN "
            "--mount=type=tmpfs,target=/big --mount=type=ssh"
        )
        text = f"FROM base AS s\nFROM base\nRUN {mounts} one\nRUN {mounts} two\n"
        context = [BuildFile("a", b"from context")]
        options: dict[str, Any] = {"context_files": context, "secret_env": {"TOKEN": "hush"}}
        outcome = await shop.build(text, **options)
        assert seen["cache"] == ["one"]
        assert seen["bind"] == "from context"
        assert seen["stage"].startswith("root:x:0")
        assert seen["secret"] == ("hush", 0o400)
        assert seen["env"] == "hush"
        assert seen["tmpfs"] == ("/big",)
        assert shop.tree(outcome) == {}
        assert not any(shop.layers.path(outcome.layers[-1]).iterdir())
        options["secret_env"] = {"TOKEN": "other"}
        assert (await shop.build(text, **options)).layers[-1] != outcome.layers[-1]

    run(tmp_path, check)


def test_a_here_document_can_be_a_program(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        async def behave(container: FakeContainer) -> int:
            if PROBE in container.script:
                return 0
            assert container.script == "/dev/pipes/EOF"
            program = host(shop, container, "/dev/pipes/EOF")
            assert program.read_text() == "#!/usr/bin/env python3\nprint($A)\n"
            assert program.stat().st_mode & 0o111
            return 0

        shop.runtime.behave = behave
        await shop.build("FROM base\nRUN <<EOF\n#!/usr/bin/env python3\nprint($A)\nEOF\n")

    run(tmp_path, check)


def test_triggers_run_in_the_next_image_and_not_in_the_one_after(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        first = await shop.build("FROM base\nONBUILD COPY <<E /e\nx\nE\nONBUILD RUN trigger\n")
        assert shop.runtime.scripts == []
        assert first.config.onbuild == ["COPY <<E /e\nx\nE", "RUN trigger"]
        bases: Any = {"bases": {"base": (first.layers, first.config)}}
        second = await shop.build("FROM base\nRUN own\n", **bases)
        assert shop.runtime.scripts == ["trigger", "own"]
        assert second.config.onbuild == []
        assert shop.tree(second, -3) == {"e": "x\n"}

    run(tmp_path, check)


def test_what_an_image_says_about_itself(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        outcome = await shop.build(
            'FROM base\nLABEL a=1 "b c"="d e"\nMAINTAINER me\nEXPOSE 80 53/udp\nVOLUME ["/v"]\n'
            "STOPSIGNAL SIGINT\nHEALTHCHECK --interval=5s CMD curl x\n"
        )
        config = outcome.config
        assert config.labels == {"a": "1", "b c": "d e", "maintainer": "me"}
        assert (config.ports, config.volumes) == (["80/tcp", "53/udp"], ["/v"])
        assert (config.stop_signal, config.healthcheck) == ("SIGINT", ["CMD-SHELL", "curl x"])
        assert outcome.layers[:-1] == [BASE]
        assert (shop.layers.path(outcome.layers[-1]) / "v").is_dir()
        again = await shop.build("FROM base\nVOLUME /v\n", bases={"base": (outcome.layers, config)})
        assert again.layers == outcome.layers
        assert again.config == config
        assert isinstance(config, ImageConfig)

    run(tmp_path, check)


# ── ADD ─────────────────────────────────────────────────────────────────────────────────────────


class _Handler(BaseHTTPRequestHandler):
    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[tuple[str, str]]] = []
    moved: ClassVar[dict[str, str]] = {}

    def do_GET(self) -> None:
        data = self.files.get(self.path)
        tag = f'"{hashlib.sha256(data or b"").hexdigest()[:8]}"'
        self.asked.append((self.path, self.headers.get("If-None-Match", "")))
        if self.path in self.moved:
            self.send_response(302)
            self.send_header("Location", self.moved[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif data is None:
            self.send_error(404)
        elif self.headers.get("If-None-Match") == tag:
            self.send_response(304)
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", tag)
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def site() -> Iterator[str]:
    """The URL of a small web server."""
    _Handler.files, _Handler.asked, _Handler.moved = {}, [], {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_add_of_a_url_is_asked_for_changes_only(tmp_path: Path, site: str) -> None:
    async def check(shop: Workshop) -> None:
        _Handler.files["/d/file.txt"] = b"one"
        text = f"FROM base\nADD {site}/d/file.txt /to/\n"
        first = await shop.build(text)
        assert shop.tree(first) == {"to/file.txt": "one"}
        mode = (shop.layers.path(first.layers[-1]) / "to/file.txt").stat().st_mode
        assert mode & 0o777 == 0o600
        assert (await shop.build(text)).layers == first.layers
        _Handler.files["/d/file.txt"] = b"two"
        assert shop.tree(await shop.build(text)) == {"to/file.txt": "two"}
        assert [bool(tag) for _, tag in _Handler.asked] == [False, True, True]

    run(tmp_path, check)


def test_add_checks_a_digest_and_says_what_the_server_says(tmp_path: Path, site: str) -> None:
    async def check(shop: Workshop) -> None:
        _Handler.files["/x"] = b"data"
        good = "sha256:" + hashlib.sha256(b"data").hexdigest()
        await shop.build(f"FROM base\nADD --checksum={good} {site}/x /x\n")
        with pytest.raises(BuildError, match=good):
            await shop.build(f"FROM base\nADD --checksum=sha256:00 {site}/x /x\n")
        with pytest.raises(BuildError, match="404"):
            await shop.build(f"FROM base\nADD {site}/none /x\n")

    run(tmp_path, check)


def archive(*members: tuple[str, bytes]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            info.mode = 0o640
            info.uid = 1000
            tar.addfile(info, io.BytesIO(body))
    return data.getvalue()


def test_add_does_not_ask_what_containers_may_not_ask(tmp_path: Path, site: str) -> None:
    """The metadata of a cloud, named or as the target of a redirect."""
    _Handler.moved = {"/moved": "http://169.254.169.254/latest/meta-data"}

    async def check(shop: Workshop) -> None:
        for url in (
            "http://169.254.169.254/latest/meta-data",
            "http://[fe80::1]/",
            f"{site}/moved",
        ):
            with pytest.raises(BuildError, match="own network"):
                await shop.build(f"FROM base\nADD {url} /got\n")

    run(tmp_path, check)


def test_add_unpacks_a_local_archive_and_copy_does_not(tmp_path: Path, site: str) -> None:
    async def check(shop: Workshop) -> None:
        tree = tmp_path / "context"
        tree.mkdir()
        (tree / "a.bin").write_bytes(archive(("one", b"1"), ("d/two", b"2")))
        (tree / "no.tar").write_text("not an archive")
        shop.mounts.trees["mount"] = tree

        async def build(line: str) -> BuildOutcome:
            return await shop.build(f"FROM base\n{line}\n", context_mount="mount")

        added = await build("ADD a.bin /x")
        assert shop.tree(added) == {"x/one": "1", "x/d/two": "2"}
        if os.geteuid() == 0:
            assert (shop.layers.path(added.layers[-1]) / "x/one").stat().st_uid == 1000
        assert shop.tree(await build("ADD no.tar /x")) == {"x": "not an archive"}
        packed = await build("COPY a.bin /x/")
        assert (shop.layers.path(packed.layers[-1]) / "x/a.bin").is_file()
        kept = await build("ADD --unpack=false a.bin /y/")
        assert (shop.layers.path(kept.layers[-1]) / "y/a.bin").is_file()
        _Handler.files["/a.tgz"] = archive(("r", b"r"))
        assert shop.tree(await build(f"ADD --unpack {site}/a.tgz /z")) == {"z/r": "r"}

    run(tmp_path, check)


def test_an_archive_cannot_write_outside(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        tree = tmp_path / "context"
        tree.mkdir()
        (tree / "a.tar").write_bytes(archive(("../../escaped", b"1")))
        shop.mounts.trees["mount"] = tree
        with pytest.raises(BuildError, match=r"cannot be unpacked"):
            await shop.build("FROM base\nADD a.tar /x\n", context_mount="mount")

    run(tmp_path, check)


def test_add_of_a_git_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from homeport.node.builder import fetching

    asked: list[tuple[str, ...]] = []

    async def git(*arguments: str) -> str:
        asked.append(arguments)
        if arguments[0] == "ls-remote":
            return f"{'a' * 40}\trefs/heads/dev\n"
        if "fetch" in arguments:
            work = Path(arguments[1])
            (work / "sub").mkdir(parents=True)
            (work / "sub/file").write_text("content")
        return ""

    monkeypatch.setattr(fetching, "_git", git)

    async def check(shop: Workshop) -> None:
        outcome = await shop.build("FROM base\nADD https://git.example/r.git#dev:sub /r\n")
        assert shop.tree(outcome) == {"r/file": "content"}
        assert asked[0] == ("ls-remote", "--", "https://git.example/r.git", "dev")

    run(tmp_path, check)


def test_a_stage_that_fails_is_named(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        async def behave(container: FakeContainer) -> int:
            container.say("the reason\n")
            return 7

        shop.runtime.behave = behave
        with pytest.raises(BuildError) as caught:
            await shop.build("FROM base AS s\nRUN broken\nFROM base\nCOPY --from=s /a /b\n")
        assert caught.value.message == "RUN broken failed: returned exit code 7\nthe reason"
        await asyncio.sleep(0)

    run(tmp_path, check)
