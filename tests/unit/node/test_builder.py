"""Image builds: what each instruction does, what is cached, how a build fails and ends."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from homeport.link.messages import BuildFile
from homeport.node.builder import BuildError
from homeport.node.builder.disk import DiskGuard
from homeport.node.builder.hostenv import IMAGE_CA_BUNDLE, HostBuildEnvironment

from .builder_harness import BASE, FakeContainer, Workshop, run


def test_run_makes_a_layer_on_top_of_the_base(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        async def touch(container: FakeContainer) -> int:
            container.say("working\n")
            container.write("/made", container.script)
            return 0

        shop.runtime.behave = touch
        outcome = await shop.build("FROM base\nRUN touch /made\n")
        assert outcome.layers[0] == BASE
        assert shop.tree(outcome) == {"made": "touch /made"}
        assert "=> Step 2/2 : RUN touch /made\nworking\n" in shop.text()
        assert outcome.config.env == {"A": "1"}

    run(tmp_path, check)


def test_run_gets_shell_environment_directory_and_user(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        await shop.build(
            'FROM base\nARG X=arg\nENV B="two words" C=$A\nWORKDIR /srv\nUSER worker\n'
            'SHELL ["/bin/bash", "-c"]\nRUN one\nRUN ["/bin/two", "x y"]\n',
            secret_env={"TOKEN": "s3"},
            build_args={"X": "given"},
        )
        first, second = shop.runtime.containers[:2]
        assert first.spec.command == ("/bin/bash", "-c", "one")
        assert second.spec.command == ("/bin/two", "x y")
        assert first.spec.workdir == "/srv"
        assert first.spec.user == "worker"
        assert first.spec.network == "nat"
        env = first.spec.env
        assert (env["X"], env["B"], env["C"], env["TOKEN"]) == ("given", "two words", "1", "s3")
        assert env["HOME"] == "/home/worker"
        assert "/usr/bin" in env["PATH"]

    run(tmp_path, check)


def test_secrets_and_arguments_are_not_in_the_image(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        outcome = await shop.build("FROM base\nARG X=1\nRUN one\n", secret_env={"TOKEN": "s3"})
        assert outcome.config.env == {"A": "1"}

    run(tmp_path, check)


def test_a_step_is_cached_and_everything_it_depends_on_counts(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        text = "FROM base\nRUN one\nRUN two\n"
        first = await shop.build(text)
        again = await shop.build(text)
        assert again.layers == first.layers
        assert shop.runtime.scripts == ["one", "two"]
        assert shop.text().count("cached") == 2
        for changes in (
            {"secret_env": {"T": "1"}},
            {"secret_env": {"T": "2"}},
            {"builder_version": "2026.10"},
            {"no_cache": True},
        ):
            assert not set((await shop.build(text, **changes)).layers[1:]) & set(first.layers)
        other = await shop.build("FROM base\nRUN one\nENV Z=1\nRUN two\n")
        assert other.layers[1] == first.layers[1]
        assert other.layers[2] != first.layers[2]

    run(tmp_path, check)


def test_package_lists_are_fetched_anew_the_next_day(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        text = "FROM base\nRUN apt-get update\nRUN apt-get install -y x\n"
        await shop.build(text)
        await shop.build(text)
        assert len(shop.runtime.scripts) == 2
        shop.clock.now_s += 86_400
        await shop.build(text)
        assert len(shop.runtime.scripts) == 4

    run(tmp_path, check)


def test_builds_at_the_same_time_share_a_step_and_its_output(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        go = asyncio.Event()

        async def wait(container: FakeContainer) -> int:
            container.say("said once\n")
            await go.wait()
            return 0

        shop.runtime.behave = wait
        text = "FROM base\nRUN one\n"
        builds = [asyncio.create_task(shop.build(text)) for _ in range(3)]
        while not shop.runtime.containers or shop.text().count("said once") < 3:
            await asyncio.sleep(0)
        go.set()
        outcomes = await asyncio.gather(*builds)
        assert outcomes[0].layers == outcomes[1].layers == outcomes[2].layers
        assert shop.runtime.scripts == ["one"]

    run(tmp_path, check)


def test_a_failed_command_names_itself_its_code_and_its_last_words(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        async def fail(container: FakeContainer) -> int:
            container.say("out\n")
            container.say("E: no such package\n", error=True)
            return 100

        shop.runtime.behave = fail
        with pytest.raises(BuildError) as caught:
            await shop.build("FROM base\nRUN apt-get install -y nothing\n")
        message = caught.value.message
        assert message.startswith("RUN apt-get install -y nothing failed: returned exit code 100")
        assert "E: no such package" in message
        assert shop.runtime.containers[-1].removed

    run(tmp_path, check)


def test_a_failed_step_is_tried_again(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        async def fail(container: FakeContainer) -> int:
            return 1

        good, shop.runtime.behave = shop.runtime.behave, fail
        with pytest.raises(BuildError):
            await shop.build("FROM base\nRUN one\n")
        shop.runtime.behave = good
        await shop.build("FROM base\nRUN one\n")

    run(tmp_path, check)


def test_cancelling_a_build_ends_its_container(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        shop.runtime.behave = _forever
        build = asyncio.create_task(shop.build("FROM base\nRUN one\n"))
        while not shop.runtime.containers:
            await asyncio.sleep(0)
        build.cancel()
        with pytest.raises(asyncio.CancelledError):
            await build
        assert shop.runtime.containers[0].removed

    run(tmp_path, check)


def test_cancelling_one_of_two_builds_leaves_the_other(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        go = asyncio.Event()

        async def wait(container: FakeContainer) -> int:
            await go.wait()
            return 0

        shop.runtime.behave = wait
        one = asyncio.create_task(shop.build("FROM base\nRUN one\n"))
        two = asyncio.create_task(shop.build("FROM base\nRUN one\n"))
        while not shop.runtime.containers:
            await asyncio.sleep(0)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        assert not shop.runtime.containers[0].killed
        go.set()
        assert len((await two).layers) == 2

    run(tmp_path, check)


def test_a_build_ends_at_its_time_limit(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        shop.runtime.behave = _forever
        with pytest.raises(BuildError, match="did not end within"):
            await shop.build("FROM base\nRUN one\n", timeout_s=0.05)
        assert shop.runtime.containers[0].removed

    run(tmp_path, check)


def test_a_step_that_fills_the_disk_is_ended(tmp_path: Path) -> None:
    free = [10_000_000_000]

    async def check(shop: Workshop) -> None:
        async def fill(container: FakeContainer) -> int:
            container.write("/small")
            free[0] = 1_000
            await asyncio.sleep(0.05)  # long enough to be looked at, and not the culprit
            assert not container.killed
            with (container.spec.upper / "big").open("wb") as file:
                file.truncate(100 * 2**20)
            await asyncio.Event().wait()
            return 0

        shop.runtime.behave = fill
        with pytest.raises(
            BuildError, match="RUN fill failed: it wrote 100 MiB, and the node's disk"
        ):
            await shop.build("FROM base\nRUN fill\n")
        assert shop.runtime.containers[0].removed
        with pytest.raises(BuildError, match="builds must leave 953 MiB"):
            await shop.build("FROM base\nRUN more\n")
        assert len(shop.runtime.containers) == 1

    guard = DiskGuard(lambda: free[0], 1_000_000_000, look_s=0.005)
    run(tmp_path, check, disk=guard)


def test_download_caches_leave_no_trace(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        outcome = await shop.build("FROM base\nRUN one\n")
        spec = shop.runtime.containers[0].spec
        assert spec.env["PIP_CACHE_DIR"] in {bind.target for bind in spec.binds}
        root = shop.layers.path(outcome.layers[-1])
        assert not (root / "var").exists()
        await shop.build("FROM base\nUSER worker\nRUN two\n")
        assert shop.runtime.containers[-1].spec.binds == ()

    run(tmp_path, check)


def test_the_hosts_indexes_reach_builds_but_not_images(tmp_path: Path) -> None:
    host = HostBuildEnvironment({"PIP_INDEX_URL": "https://mirror/simple"}, (b"pem",))

    async def check(shop: Workshop) -> None:
        outcome = await shop.build("FROM base\nRUN one\nENV PIP_INDEX_URL=mine\nRUN two\n")
        one, two = (container.spec.env for container in shop.runtime.containers[:2])
        assert one["PIP_INDEX_URL"] == "https://mirror/simple"
        assert two["PIP_INDEX_URL"] == "mine"
        assert "PIP_CERT" not in one  # the base has no bundle it could name
        assert outcome.config.env == {"A": "1", "PIP_INDEX_URL": "mine"}
        await shop.build(
            f"FROM base\nCOPY ca {IMAGE_CA_BUNDLE}\nRUN three\n",
            context_files=[BuildFile("/ca", b"")],
        )
        env = next(c.spec.env for c in shop.runtime.containers if c.script == "three")
        assert env["PIP_CERT"] == env["SSL_CERT_FILE"] == IMAGE_CA_BUNDLE

    run(tmp_path, check, host=host)


def test_entrypoint_resets_an_inherited_command_only(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        outcome = await shop.build('FROM base\nENTRYPOINT ["/e"]\n')
        assert (outcome.config.entrypoint, outcome.config.cmd) == (["/e"], [])
        outcome = await shop.build('FROM base\nCMD ["c"]\nENTRYPOINT run it\n')
        assert outcome.config.cmd == ["c"]
        assert outcome.config.entrypoint == ["/bin/sh", "-c", "run it"]

    run(tmp_path, check)


def test_from_scratch_has_no_layers(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        outcome = await shop.build(
            "FROM scratch\nCOPY a /a\n", context_files=[BuildFile("a", b"x")]
        )
        assert len(outcome.layers) == 1
        assert outcome.python_version == ""

    run(tmp_path, check)


def test_versions_are_asked_once(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        async def answer(container: FakeContainer) -> int:
            container.say("Python 3.11.7 (main)\nhomeport-libc:\nldd (GLIBC 2.36) 2.36\nmore\n")
            return 0

        shop.runtime.behave = answer
        for _ in range(2):
            outcome = await shop.build("FROM base\n")
            assert outcome.python_version == "Python 3.11.7 (main)"
            assert outcome.libc_version == "ldd (GLIBC 2.36) 2.36"
        assert len(shop.runtime.containers) == 1

    run(tmp_path, check)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("FROM base\nCOPY --from=1 /a /b\n", "no stage 1 before this one"),
        ("FROM base\nCOPY --from=nginx:1 /a /b\n", "would have to come from a container registry"),
        ("FROM base AS x\nFROM base\nCOPY --from=x /a /b\n", "/a is not in x"),
        ("FROM base AS 9\n", "cannot be the name of a stage"),
        ("FROM base x y\n", "FROM image [AS name]"),
        ("FROM base\nADD git@example.com:x /x --keep\n", "git"),
        ("FROM base\nADD --checksum=sha256:0 a /x\n", "--checksum is for a URL"),
        ("FROM base\nRUN --mount=type=cache true\n", "needs a target"),
        ("FROM base\nRUN --mount=type=nfs,target=/c true\n", "no type 'nfs'"),
        ("FROM base\nRUN --mount=type=cache,target=/c,size=3 true\n", "no option 'size'"),
        ("FROM base\nRUN --mount=type=secret,id=T,required true\n", "the secret T is required"),
        ("FROM base\nRUN --mount=type=bind,source=none,target=/c true\n", "none is not"),
        ("FROM base\nRUN --mount=target=/ true\n", "root directory"),
        ("FROM base\nRUN --network=host true\n", "--network=host is not allowed"),
        ("FROM base\nONBUILD FROM x\n", "line 2: ONBUILD cannot have FROM"),
        ("FROM base\n\nFRMO x\n", "line 3: there is no instruction FRMO"),
        ("FROM base\nCOPY --chmod=9 a /x\n", "octal"),
        ("FROM base\nEXPOSE http\n", "http is not a port"),
        ("FROM base\nHEALTHCHECK true\n", "HEALTHCHECK [options] CMD"),
        ("FROM base\nLABEL a\n", "expected"),
        ("FROM base\nCOPY missing /x\n", "missing is not in the build context"),
        ("FROM base\nCOPY --chown=nobody a /x\n", "not in the image's /etc/passwd"),
        ("FROM centos:7\n", "centos:7 would have to come from a container registry"),
        ("FROM python:3.12-alpine\n", "another C library (musl)"),
        ("FROM mambaorg/micromamba:2.9.0-debian13-slim\n", "conda packages come from a channel"),
        ("FROM --platform=linux/arm64 base\n", "linux/arm64"),
        ("RUN true\n", "only ARG may come before FROM"),
        ("ARG A=1\n", "there is no FROM"),
        ("# nothing\n", "no instructions"),
        ('FROM base\nENV A="open\n', "never closed"),
    ],
)
def test_what_cannot_be_built_says_so(tmp_path: Path, lines: str, message: str) -> None:
    async def check(shop: Workshop) -> None:
        with pytest.raises(BuildError) as caught:
            await shop.build(lines, context_files=[BuildFile("a", b"")])
        assert message in caught.value.message

    run(tmp_path, check)


def test_missing_layers_of_a_base_are_named(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        message = shop.message("FROM base\n")
        message.bases["base"] = (["gone"], message.bases["base"][1])
        with pytest.raises(BuildError, match="not on this node any more"):
            await shop.builder.build(message, shop.logs.extend)

    run(tmp_path, check)


# ── COPY ────────────────────────────────────────────────────────────────────────────────────────


def _context(shop: Workshop, tmp_path: Path) -> str:
    root = tmp_path / "context"
    for name in ("app/main.py", "app/sub/x.txt", "one.txt", "two.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "one.txt").chmod(0o755)
    shop.mounts.trees["digest"] = root
    return "digest"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("COPY . /", ["app/main.py", "app/sub/x.txt", "one.txt", "two.txt"]),
        ("COPY . .", ["srv/app/main.py", "srv/app/sub/x.txt", "srv/one.txt", "srv/two.txt"]),
        ("COPY app /x", ["x/main.py", "x/sub/x.txt"]),
        ("COPY /app/ x", ["srv/x/main.py", "srv/x/sub/x.txt"]),
        ("COPY one.txt /y", ["y"]),
        ("COPY one.txt /y/", ["y/one.txt"]),
        ("COPY one.txt /etc", ["etc/one.txt"]),
        ("COPY *.txt /t/", ["t/one.txt", "t/two.txt"]),
        ("COPY ap?/*.py /t/", ["t/main.py"]),
        (
            'COPY ["one.txt", "two.txt", "/with blank/"]',
            ["with blank/one.txt", "with blank/two.txt"],
        ),
        ("COPY o*.txt $A/", ["srv/1/one.txt"]),
        ("ADD one.txt /a", ["a"]),
    ],
)
def test_copy_puts_files_where_docker_would(tmp_path: Path, line: str, names: list[str]) -> None:
    async def check(shop: Workshop) -> None:
        mount = _context(shop, tmp_path)
        outcome = await shop.build(f"FROM base\nWORKDIR /srv\n{line}\n", context_mount=mount)
        assert sorted(shop.tree(outcome)) == sorted(names)

    run(tmp_path / "home", check)


def test_copy_keeps_modes_and_follows_links_of_the_image(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        base = shop.layers.path(BASE)
        (base / "usr/lib").mkdir(parents=True)
        (base / "usr/lib").chmod(0o711)
        (base / "lib").symlink_to("usr/lib")
        mount = _context(shop, tmp_path)
        outcome = await shop.build("FROM base\nCOPY one.txt /lib/x/\n", context_mount=mount)
        top = shop.layers.path(outcome.layers[-1])
        assert (top / "usr/lib/x/one.txt").stat().st_mode & 0o777 == 0o755
        assert (top / "usr/lib").stat().st_mode & 0o777 == 0o711
        assert not (top / "lib").exists()

    run(tmp_path / "home", check)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_copy_sets_owner_and_mode(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        mount = _context(shop, tmp_path)
        outcome = await shop.build(
            "FROM base\nCOPY --chown=worker:workers --chmod=600 one.txt /w/\n", context_mount=mount
        )
        info = (shop.layers.path(outcome.layers[-1]) / "w/one.txt").stat()
        assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (1000, 1001, 0o600)

    run(tmp_path / "home", check)


def test_copy_is_cached_by_content(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        def files(data: bytes) -> list[BuildFile]:
            return [BuildFile("/a", data)]

        text = "FROM base\nCOPY /a /a\n"
        one = await shop.build(text, context_files=files(b"1"))
        same = await shop.build(text, context_files=files(b"1"))
        other = await shop.build(text, context_files=files(b"2"))
        assert one.layers == same.layers != other.layers

    run(tmp_path, check)


def test_copy_does_not_replace_a_directory_by_a_file(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        with pytest.raises(BuildError, match="a file cannot replace it"):
            await shop.build(
                "FROM base\nCOPY . /\n", context_files=[BuildFile("etc", b"not a directory")]
            )

    run(tmp_path, check)


def test_copy_of_a_here_document(tmp_path: Path) -> None:
    async def check(shop: Workshop) -> None:
        outcome = await shop.build(
            "FROM base\nCOPY <<ONE <<'TWO' /d/\na is $A\nONE\na is $A\nTWO\n"
        )
        assert shop.tree(outcome) == {"d/ONE": "a is 1\n", "d/TWO": "a is $A\n"}

    run(tmp_path, check)


async def _forever(container: FakeContainer) -> int:
    await asyncio.Event().wait()
    return 0
