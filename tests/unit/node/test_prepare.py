"""What a container is given before it starts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from homeport.kernel.errors import NotFoundError, UnavailableError
from homeport.kernel.resources import Limits
from homeport.link.messages import (
    BuildFinished,
    BuildImage,
    BuildLog,
    ImageConfig,
    LogEntry,
    Message,
    MountRef,
    VolumeRef,
)
from homeport.node.builder.builder import BuildOutcome
from homeport.node.builder.errors import BuildError
from homeport.node.builds import NodeBuilds
from homeport.node.bytecode import BytecodeStore
from homeport.node.isolation import Isolation
from homeport.node.mounts import MountStore
from homeport.node.prepare import Preparer, environment
from homeport.node.runtime.port import ContainerSpec, ContainerStartError, Exit

from .harness import NoLayers, PlainRuntime, function, start_task


class Mounts:
    async def layer(self, digest: str) -> Path:
        return Path("/mounts") / digest


class Bytecode:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, tuple[Path, ...]]] = []

    async def layer(
        self, digest: str, python: str, runtime: object, layers: tuple[Path, ...]
    ) -> Path | None:
        self.asked.append((digest, python, layers))
        return Path("/bytecode") / digest


def preparer(root: Path, bytecode: Bytecode | None = None) -> Preparer:
    layers = NoLayers(Path("/layers"))
    return Preparer(root, Isolation(PlainRuntime()), layers, Mounts(), bytecode)


def test_layers_are_image_then_mounts_each_with_its_bytecode(tmp_path: Path) -> None:
    mounts = [MountRef("m1", compile=True), MountRef("m2")]
    start = start_task(function("f"), layers=["a", "b"], mounts=mounts)
    bytecode = Bytecode()
    prepared = asyncio.run(preparer(tmp_path, bytecode).prepare(start))
    names = ["/layers/a", "/layers/b", "/mounts/m1", "/bytecode/m1", "/mounts/m2"]
    assert [str(path) for path in prepared.layers] == names
    image_and_mount = (Path("/layers/a"), Path("/layers/b"), Path("/mounts/m1"))
    assert bytecode.asked == [("m1", "3.11", image_and_mount)]


def test_folder_has_arguments_and_is_deleted(tmp_path: Path) -> None:
    start = start_task(function("f"))

    async def scenario() -> None:
        made = preparer(tmp_path)
        prepared = await made.prepare(start)
        spec = prepared.spec(start, 1, 2)
        (bind,) = spec.binds
        assert (bind.source / "args.bin").read_bytes() == start.arguments
        assert prepared.socket_path.parent == bind.source
        assert spec.network == "nat"
        await made.discard(prepared)

    asyncio.run(scenario())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("turns", range(6))
def test_a_stop_while_it_is_prepared_leaves_no_folder(tmp_path: Path, turns: int) -> None:
    async def scenario() -> None:
        preparing = asyncio.ensure_future(preparer(tmp_path).prepare(start_task(function("f"))))
        for _ in range(turns):
            await asyncio.sleep(0)
        if preparing.cancel():
            with pytest.raises(asyncio.CancelledError):
                await preparing
        else:
            await preparer(tmp_path).discard(await preparing)

    asyncio.run(scenario())
    assert list(tmp_path.iterdir()) == []


def test_blocked_network_is_none(tmp_path: Path) -> None:
    start = start_task(function("f"), block_network=True)
    assert asyncio.run(preparer(tmp_path).prepare(start)).spec(start, 1, 2).network == "none"


def test_platform_keys_win_and_python_paths_are_merged() -> None:
    given = {
        "PYTHONPATH": "/image:/pkg:/root",
        "MODAL_SERVER_URL": "http://evil",
        "MODAL_TASK_ID": "x",
        "PYTHONUNBUFFERED": "",
        "MINE": "1",
    }
    start = start_task(function("f"), env=given)
    env = environment(start)
    assert env["PYTHONPATH"] == "/root:/pkg:/image"
    assert env["MODAL_SERVER_URL"].startswith("unix://localhost/__modal/")
    assert env["MODAL_TASK_ID"] == start.task_id
    assert (
        env["PYTHONUNBUFFERED"] == env["MODAL_IS_REMOTE"] == env["MODAL_DISABLE_API_PROXY"] == "1"
    )
    assert env["MINE"] == "1"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    class Empty(NoLayers):
        def has(self, key: str) -> bool:
            return False

    empty = Preparer(tmp_path, Isolation(PlainRuntime()), Empty(tmp_path), Mounts())
    with pytest.raises(NotFoundError, match="image layer abc"):
        asyncio.run(empty.prepare(start_task(function("f"), layers=["abc"])))
    with pytest.raises(UnavailableError, match="no runtime 'runsc'"):
        asyncio.run(preparer(tmp_path).prepare(start_task(function("f"), runtime="runsc")))
    volumes = [VolumeRef("vo-1", "/data")]
    with pytest.raises(UnavailableError, match="cannot mount volumes"):
        asyncio.run(preparer(tmp_path).prepare(start_task(function("f"), volumes=volumes)))


# ── bytecode ──────────────────────────────────────────────────────────────────────────────────


class CompilingContainer:
    def __init__(self, spec: ContainerSpec) -> None:
        self._spec = spec

    async def wait(self) -> Exit:
        for folder in ("pkg/a/__pycache__", "root/__pycache__", "tmp"):
            (self._spec.upper / folder).mkdir(parents=True)
        (self._spec.upper / "pkg/a/__pycache__/x.pyc").write_bytes(b"code")
        return Exit(1, False)  # some files never compile

    async def remove(self, *, keep_upper: bool = False) -> None:
        assert keep_upper


class CompilingRuntime(PlainRuntime):
    async def start(self, spec: ContainerSpec) -> CompilingContainer:  # type: ignore[override]
        self.specs.append(spec)
        if self.error is not None:
            raise self.error
        return CompilingContainer(spec)


def mount(tmp_path: Path) -> MountStore:
    store = MountStore(tmp_path / "mounts", None)  # type: ignore[arg-type]
    (store.path("m1") / "pkg/a").mkdir(parents=True)
    (store.path("m2") / "root").mkdir(parents=True)
    return store


def test_bytecode_layer_has_only_caches_of_what_was_compiled(tmp_path: Path) -> None:
    store, runtime = mount(tmp_path), CompilingRuntime()

    async def scenario() -> None:
        code = BytecodeStore(store)
        asks = [code.layer("m1", "3.11", runtime, (store.path("m1"),)) for _ in range(3)]
        (path,) = set(await asyncio.gather(*asks))
        assert path is not None
        files = [str(f.relative_to(path)) for f in path.rglob("*") if f.is_file()]
        assert files == ["pkg/a/__pycache__/x.pyc"]
        assert not (path / "tmp").exists()
        assert await code.layer("m1", "3.11", runtime, ()) == path
        assert len(runtime.specs) == 1
        assert runtime.specs[0].command[-1] == "/pkg"
        assert await code.layer("m2", "3.11", runtime, ()) is None  # nothing worth it

    asyncio.run(scenario())
    assert list((store.root / ".work").iterdir()) == []


def test_bytecode_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    store, runtime = mount(tmp_path), CompilingRuntime()
    runtime.error = ContainerStartError("no")

    async def scenario() -> None:
        code = BytecodeStore(store)
        assert await code.layer("m1", "3.11", runtime, ()) is None
        assert await code.layer("m1", "3.11", runtime, ()) is None
        assert len(runtime.specs) == 1

    asyncio.run(scenario())


# ── builds ────────────────────────────────────────────────────────────────────────────────────


class Link:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.finished: list[BuildFinished] = []

    def send(self, message: Message) -> bool:
        self.messages.append(message)
        return True

    def send_sure(self, message: BuildFinished) -> None:
        self.finished.append(message)


class Builder:
    def __init__(self, outcome: BuildOutcome | Exception | None) -> None:
        self.outcome = outcome

    async def build(self, message: BuildImage, on_log: object) -> BuildOutcome:
        on_log([LogEntry(1, 1, "step\n")])  # type: ignore[operator]
        if self.outcome is None:
            await asyncio.Event().wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        assert self.outcome is not None
        return self.outcome


def build(outcome: BuildOutcome | Exception | None, *, cancel: bool = False) -> Link:
    message = BuildImage("bd-1", "FROM x", {}, "", [], {}, {}, "2025.06", Limits(), 60.0)

    async def scenario() -> Link:
        link = Link()
        builds = NodeBuilds(Builder(outcome), link)
        builds.start(message)
        builds.start(message)
        await asyncio.sleep(0)
        if cancel:
            builds.cancel("bd-1")
        while not link.finished:
            await asyncio.sleep(0)
        await builds.stop()
        return link

    return asyncio.run(scenario())


def test_built_image_is_reported_with_its_log() -> None:
    config = ImageConfig(env={"A": "1"})
    link = build(BuildOutcome(["l1"], config, "Python 3.11.7", "2.36"))
    assert link.messages == [BuildLog("bd-1", [LogEntry(1, 1, "step\n")])]
    (finished,) = link.finished
    assert (finished.error, finished.layers, finished.config) == ("", ["l1"], config)
    assert (finished.python_version, finished.libc_version) == ("Python 3.11.7", "2.36")


def test_failed_build_says_why() -> None:
    assert build(BuildError("RUN false failed")).finished[0].error == "RUN false failed"
    assert "the node failed" in build(RuntimeError("x")).finished[0].error
    assert build(None, cancel=True).finished[0].error == "the build was cancelled"
