"""Images: identity by content, one build for all who ask, builds followed to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
from modal_proto import api_pb2

from homeport.environments.service import EnvironmentService
from homeport.images import wire
from homeport.images.live import LOG_ENTRIES_MAX, LiveBuild
from homeport.images.model import (
    BuildInputs,
    ContextFile,
    FunctionStep,
    ImageRecord,
    ImageRequest,
    ImageStatus,
)
from homeport.images.names import NamedImages
from homeport.images.service import BuildEvent, ImageService
from homeport.images.store import ImageNameStore, ImageStore
from homeport.images.upkeep import ImageBundle, ImageUpkeep
from homeport.kernel.clock import SystemClock
from homeport.kernel.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from homeport.link.messages import BuildFinished, BuildImage, ImageConfig, LogEntry, VolumeRef
from homeport.storage.database import Database
from homeport.storage.operations import OperationLog


@dataclass
class FakeBuilder:
    """Builds when told to; keeps what it was asked for."""

    messages: list[BuildImage] = field(default_factory=list[BuildImage])
    go: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    error: str = ""
    broken: Exception | None = None
    say: Callable[[list[LogEntry]], None] = lambda entries: None

    async def build(
        self, message: BuildImage, on_log: Callable[[list[LogEntry]], None]
    ) -> BuildFinished:
        self.messages.append(message)
        self.say = on_log
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.broken is not None:
            raise self.broken
        layers = [f"layer-{len(self.messages)}"]
        config = ImageConfig(workdir="/srv")
        return BuildFinished(
            0, message.build_id, self.error, layers, config, "Python 3.11.7 (x)", "glibc 2"
        )


@dataclass
class FakeFunctionBuilder:
    """Keeps what it was asked for; fails if told to."""

    asked: list[tuple[str, FunctionStep, str]] = field(
        default_factory=list[tuple[str, FunctionStep, str]]
    )
    error: str = ""

    async def build(
        self,
        function_id: str,
        step: FunctionStep,
        *,
        layer: str,
        build_id: str,
        on_log: Callable[[list[LogEntry]], None],
    ) -> None:
        self.asked.append((function_id, step, layer))
        on_log([LogEntry(1, 1, "printed by the function")])
        if self.error:
            raise InvalidError(self.error)


class Studio:
    """The service over a real database."""

    node_wait_s = 0.0
    patience_s = 30.0

    def __init__(self, path: Path) -> None:
        self.database = Database.sqlite(path / "homeport.db")
        self.operations = OperationLog(self.database, SystemClock())
        self.builder = FakeBuilder()
        self.functions = FakeFunctionBuilder()
        self.lost: set[str] = set()
        self.secrets: dict[str, dict[str, str]] = {}
        self.mounts: dict[str, str] = {}
        self.blobs: dict[str, bytes] = {}
        self.directories: list[tuple[str, str]] = []
        self.service = self._new()

    def _new(self) -> ImageService:
        return ImageService(
            ImageStore(self.database),
            self.builder,
            mount_digest=self._digest,
            secret_env=self._env,
            read_blob=self._blob,
            prepare_volume=self._prepare_volume,
            function_builder=self.functions,
            has_layers=lambda keys: not self.lost.intersection(keys),
            node_wait_s=self.node_wait_s,
            patience_s=self.patience_s,
        )

    async def _prepare_volume(self, volume_id: str, path: str) -> None:
        if not volume_id.startswith("vo-"):
            raise NotFoundError("no such volume")
        self.directories.append((volume_id, path))

    async def _blob(self, blob_id: str) -> bytes:
        return self.blobs[blob_id]

    async def restart(self) -> None:
        """As after a crash: what was in memory is gone."""
        await self.service.stop()
        self.builder = FakeBuilder()
        self.service = self._new()
        await self.service.start()

    async def _digest(self, mount_id: str) -> str:
        return self.mounts[mount_id]

    async def _env(self, secret_ids: Sequence[str]) -> dict[str, str]:
        return {k: v for secret_id in secret_ids for k, v in self.secrets[secret_id].items()}

    async def ask(self, *lines: str, **changes: Any) -> ImageRecord:
        values: dict[str, Any] = {
            "dockerfile": list(lines or ("FROM python:3.11-slim",)),
            "bases": [],
            "context_files": [],
            "context_mount_id": "",
            "build_args": {},
            "secret_ids": [],
            "builder_version": "2025.06",
            "app_id": "ap-1",
        }
        return await self.service.get_or_create(ImageRequest(**{**values, **changes}))

    async def built(self, *lines: str, **changes: Any) -> ImageRecord:
        """An image, once its build has ended."""
        self.builder.go.set()
        record = await self.ask(*lines, **changes)
        events = await self.follow(record.image_id)
        outcome = events[-1].outcome
        assert outcome is not None
        return outcome

    async def follow(self, image_id: str, **changes: Any) -> list[BuildEvent]:
        values: dict[str, Any] = {"timeout_s": 30.0, **changes}
        return [event async for event in self.service.follow(image_id, **values)]


@asynccontextmanager
async def _open(path: Path) -> AsyncIterator[Studio]:
    studio = Studio(path)
    await studio.database.start()
    await studio.service.start()
    try:
        yield studio
    finally:
        await studio.service.stop()
        await studio.database.stop()


def run(path: Path, check: Callable[[Studio], Awaitable[None]]) -> None:
    async def main() -> None:
        async with _open(path) as studio:
            await check(studio)

    asyncio.run(main())


def entry(text: str) -> LogEntry:
    return LogEntry(1, 5, text)


def test_a_built_image_is_not_built_again(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        built = await studio.built()
        again = await studio.ask(app_id="ap-2")
        assert again == built
        assert again.python_version == "3.11.7"
        assert again.layers == ["layer-1"]
        assert len(studio.builder.messages) == 1
        assert studio.service.get(built.image_id).config.workdir == "/srv"

    run(tmp_path, check)


def test_everything_in_the_recipe_counts(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        base = await studio.built()
        studio.mounts = {"mo-1": "digest"}
        studio.secrets = {"st-1": {"A": "1"}}
        variants: list[dict[str, Any]] = [
            {},
            {"bases": [("base", base.image_id)]},
            {"context_files": [ContextFile("/a", b"1")]},
            {"context_files": [ContextFile("/a", b"2")]},
            {"context_mount_id": "mo-1"},
            {"build_args": {"X": "1"}},
            {"secret_ids": ["st-1"]},
            {"builder_version": "2026.10"},
        ]
        found = {(await studio.ask("FROM base", **v)).image_id for v in variants}
        assert len(found) == len(variants)

    run(tmp_path, check)


def test_ids_of_secrets_and_mounts_do_not_count(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        studio.mounts = {"mo-1": "d", "mo-2": "d", "mo-3": "e"}
        studio.secrets = {"st-1": {"A": "1"}, "st-2": {"A": "1"}, "st-3": {"A": "2"}}
        first = await studio.ask(context_mount_id="mo-1", secret_ids=["st-1"])
        same = await studio.ask(context_mount_id="mo-2", secret_ids=["st-2"])
        assert same.image_id == first.image_id
        for changes in ({"context_mount_id": "mo-3"}, {"secret_ids": ["st-3"]}):
            other = await studio.ask(
                **{"context_mount_id": "mo-1", "secret_ids": ["st-1"], **changes}
            )
            assert other.image_id != first.image_id
        studio.builder.go.set()
        await studio.follow(first.image_id)
        message = studio.builder.messages[0]
        assert (message.context_mount, message.secret_env) == ("d", {"A": "1"})

    run(tmp_path, check)


def test_many_who_ask_at_once_share_one_build(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        records = await asyncio.gather(*(studio.ask(app_id=f"ap-{n}") for n in range(5)))
        assert len({record.image_id for record in records}) == 1
        assert all(record.status is ImageStatus.BUILDING for record in records)
        followers = [asyncio.create_task(studio.follow(records[0].image_id)) for _ in range(3)]
        studio.builder.go.set()
        for events in await asyncio.gather(*followers):
            assert [event.outcome is not None for event in events] == [True]
        assert len(studio.builder.messages) == 1

    run(tmp_path, check)


def test_a_follower_sees_all_output_and_then_the_end(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        record = await studio.ask()
        await asyncio.sleep(0)
        studio.builder.say([entry("one"), entry("two")])
        seen: list[BuildEvent] = []
        async for event in studio.service.follow(record.image_id, timeout_s=30):
            seen.append(event)
            if len(seen) == 1:
                studio.builder.say([entry("three")])
                studio.builder.go.set()
        assert [e.data for event in seen for e in event.entries] == ["one", "two", "three"]
        assert [event.outcome is not None for event in seen][-1]
        assert sum(event.outcome is not None for event in seen) == 1

    run(tmp_path, check)


def test_a_follower_whose_time_is_up_goes_on_where_it_was(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        record = await studio.ask()
        await asyncio.sleep(0)
        studio.builder.say([entry("one")])
        events = await studio.follow(record.image_id, timeout_s=0)
        assert [event.outcome for event in events] == [None]
        cursor = events[-1].entry_id
        studio.builder.say([entry("two")])
        studio.builder.go.set()
        rest = await studio.follow(record.image_id, last_entry_id=cursor)
        assert [e.data for event in rest for e in event.entries] == ["two"]
        # the build has ended: the same cursor still works, from the record
        late = await studio.follow(record.image_id, last_entry_id=cursor)
        assert [e.data for event in late for e in event.entries] == ["two"]
        assert late[-1].outcome is not None

    run(tmp_path, check)


def test_a_build_that_nobody_waits_for_any_more_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Studio, "patience_s", 0.05)

    async def check(studio: Studio) -> None:
        record = await studio.ask()
        following = asyncio.ensure_future(studio.follow(record.image_id))
        await asyncio.sleep(0.2)
        assert not studio.builder.cancelled.is_set()
        following.cancel()
        await asyncio.wait([following])
        await studio.builder.cancelled.wait()
        events = await studio.follow(record.image_id)
        outcome = events[-1].outcome
        assert outcome is not None
        assert outcome.status is ImageStatus.FAILED
        assert "nobody waited for it" in outcome.error
        # whoever asks again gets a new build
        assert (await studio.built()).status is ImageStatus.SUCCEEDED

    run(tmp_path, check)


def test_a_build_that_nobody_ever_followed_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Studio, "patience_s", 0.0)

    async def check(studio: Studio) -> None:
        await studio.ask()
        await studio.builder.cancelled.wait()

    run(tmp_path, check)


def test_output_of_a_finished_build_comes_when_asked_for(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        record = await studio.ask()
        await asyncio.sleep(0)
        studio.builder.say([entry("one")])
        studio.builder.go.set()
        await studio.follow(record.image_id)
        without = await studio.follow(record.image_id)
        assert [event.entries for event in without] == [[]]
        await studio.restart()
        events = await studio.follow(record.image_id, with_finished_log=True)
        assert [e.data for event in events for e in event.entries] == ["one"]
        assert events[-1].outcome is not None

    run(tmp_path, check)


def test_a_failure_is_told_to_followers_and_forgotten_when_asked_again(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        studio.builder.error = "RUN false failed"
        failed = await studio.built()
        assert (failed.status, failed.error) == (ImageStatus.FAILED, "RUN false failed")
        late = await studio.follow(failed.image_id)
        assert late[-1].outcome == failed
        with pytest.raises(InvalidError, match="RUN false failed"):
            studio.service.get(failed.image_id)
        studio.builder.error = ""
        assert (await studio.built()).status is ImageStatus.SUCCEEDED
        assert len(studio.builder.messages) == 2

    run(tmp_path, check)


@pytest.mark.parametrize(
    ("problem", "words"),
    [(UnavailableError("no node is there"), "no node is there"), (ValueError("x"), "ValueError")],
)
def test_a_builder_that_breaks_fails_the_build(
    tmp_path: Path, problem: Exception, words: str
) -> None:
    async def check(studio: Studio) -> None:
        studio.builder.broken = problem
        record = await studio.built()
        assert record.status is ImageStatus.FAILED
        assert words in record.error

    run(tmp_path, check)


def test_a_node_that_went_away_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("homeport.images.service._NODE_RETRY_S", 0.0)
    monkeypatch.setattr(Studio, "node_wait_s", 30.0)

    async def check(studio: Studio) -> None:
        studio.builder.broken = UnavailableError("the node is gone")
        record = await studio.ask()
        studio.builder.go.set()
        while len(studio.builder.messages) < 3:
            await asyncio.sleep(0)
        studio.builder.broken = None
        events = await studio.follow(record.image_id)
        assert events[-1].outcome is not None
        assert events[-1].outcome.status is ImageStatus.SUCCEEDED
        assert "the node is gone; waiting for a node" in events[0].entries[0].data
        assert len({message.build_id for message in studio.builder.messages}) == 1

    run(tmp_path, check)


def test_a_build_that_a_crash_interrupted_starts_again(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        studio.secrets = {"st-1": {"A": "1"}}
        record = await studio.ask(secret_ids=["st-1"])
        await asyncio.sleep(0)
        await studio.restart()
        studio.builder.go.set()
        events = await studio.follow(record.image_id, last_entry_id=f"{record.build_id}:7")
        assert events[-1].outcome is not None
        assert events[-1].outcome.status is ImageStatus.SUCCEEDED
        assert studio.builder.messages[0].secret_env == {"A": "1"}

    run(tmp_path, check)


def test_images_survive_a_restart(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        built = await studio.built()
        await studio.restart()
        assert studio.service.get(built.image_id) == built

    run(tmp_path, check)


def test_force_build_rebuilds_once_per_app_and_keeps_the_old_build_usable(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        old = await studio.built()
        studio.builder.go.clear()
        forced = await studio.ask(app_id="ap-2", force_build=True)
        assert forced.image_id == old.image_id
        assert studio.service.get(old.image_id).layers == ["layer-1"]
        studio.builder.go.set()
        await studio.follow(old.image_id)
        assert studio.service.get(old.image_id).layers == ["layer-2"]
        assert studio.builder.messages[1].no_cache
        await studio.ask(app_id="ap-2", force_build=True)
        assert len(studio.builder.messages) == 2
        assert (await studio.ask()).layers == ["layer-2"]

    run(tmp_path, check)


def test_ignore_cache_builds_aside(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        built = await studio.built()
        aside = await studio.built(app_id="ap-2", ignore_cache=True)
        again = await studio.ask(app_id="ap-2", ignore_cache=True)
        assert aside.image_id == again.image_id != built.image_id
        assert studio.service.get(built.image_id).layers == ["layer-1"]
        assert len(studio.builder.messages) == 2

    run(tmp_path, check)


def test_a_base_must_have_been_built(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        with pytest.raises(InvalidError, match="has not been built"):
            await studio.ask("FROM base", bases=[("base", "im-none")])
        base = await studio.built()
        top = await studio.built("FROM base", bases=[("base", base.image_id)])
        assert studio.builder.messages[1].bases["base"] == (base.layers, base.config)
        chain = studio.service.chain(top.image_id)
        assert [record.image_id for record in chain] == [base.image_id, top.image_id]

    run(tmp_path, check)


def test_unknown_images(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        with pytest.raises(NotFoundError):
            studio.service.get("im-none")
        with pytest.raises(NotFoundError):
            await studio.follow("im-none")
        with pytest.raises(InvalidError, match="neither Dockerfile commands nor a function"):
            await studio.ask(dockerfile=[])

    run(tmp_path, check)


def test_the_log_of_a_build_is_bounded() -> None:
    live = LiveBuild("im-1", "bd-1")
    for number in range(LOG_ENTRIES_MAX + 10):
        live.append([entry(str(number))])
    entries, end = live.after(0)
    assert len(entries) == LOG_ENTRIES_MAX
    assert entries[0].data == "10"
    assert end == LOG_ENTRIES_MAX + 10
    assert [e.data for e in live.after(end - 1)[0]] == [str(end - 1)]


def test_what_clients_are_told(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        pending = wire.created(await studio.ask())
        assert pending.result.status == 0
        assert not pending.HasField("metadata")
        built = await studio.built()
        done = wire.created(built)
        assert done.result.status == api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
        assert done.metadata.python_version_info == "Python 3.11.7 (x)"
        assert done.metadata.workdir == "/srv"
        assert done.metadata.image_builder_version == "2025.06"
        end = wire.joined(BuildEvent(outcome=built))
        assert end.eof
        assert end.metadata == done.metadata
        output = wire.joined(BuildEvent("x:1", [LogEntry(2, 5, "text")]))
        assert (output.entry_id, output.task_logs[0].data) == ("x:1", "text")
        assert output.task_logs[0].file_descriptor == api_pb2.FILE_DESCRIPTOR_STDERR
        assert output.result.status == 0
        assert wire.build_step(built).started_at.seconds > 0

    run(tmp_path, check)


def test_volumes_of_a_recipe(tmp_path: Path) -> None:
    def request(*paths: str) -> api_pb2.ImageGetOrCreateRequest:
        mounts = [api_pb2.VolumeMount(volume_id="vo-1", mount_path=path) for path in paths]
        return api_pb2.ImageGetOrCreateRequest(image=api_pb2.Image(volume_mounts=mounts))

    for paths in (["/"], ["/a", "a/b"], ["/a/", "/a"]):
        with pytest.raises(InvalidError, match="cannot be mounted"):
            wire.image_request(request(*paths))
    refs = wire.image_request(request("/b", "a/")).volumes
    assert [ref.path for ref in refs] == ["/a", "/b"]

    async def check(studio: Studio) -> None:
        image = await studio.built(volumes=[VolumeRef("vo-1", "/a", sub_path="sub")])
        assert studio.directories == [("vo-1", "sub")]
        assert studio.builder.messages[-1].volumes == [VolumeRef("vo-1", "/a", sub_path="sub")]
        assert (await studio.built()).image_id != image.image_id
        with pytest.raises(NotFoundError):
            await studio.ask(volumes=[VolumeRef("gone", "/a")])

    run(tmp_path, check)


# ── functions as steps ──────────────────────────────────────────────────────────────────────────


def test_a_function_adds_a_layer_to_its_base(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        functions = studio.functions
        base = await studio.built()
        step = FunctionStep("def f(): ...", b"globals", b"args", data_format=1)
        ask: dict[str, Any] = {
            "dockerfile": [],
            "bases": [("base", base.image_id)],
            "function": step,
            "inputs": BuildInputs("fu-1"),
        }
        image = await studio.built(**ask)
        assert image.layers == [*base.layers, functions.asked[0][2]]
        assert (image.config, image.python_version) == (base.config, base.python_version)
        assert functions.asked[0][:2] == ("fu-1", step)
        events = await studio.follow(image.image_id, with_finished_log=True)
        assert events[0].entries[0].data == "printed by the function"
        ask["inputs"] = BuildInputs("fu-2")  # the same function of another run of the app
        assert (await studio.built(**ask)).image_id == image.image_id
        ask["function"] = FunctionStep("def f(): ...", b"globals", b"other", data_format=1)
        assert (await studio.built(**ask)).layers[-1] != image.layers[-1]

    run(tmp_path, check)


def test_what_a_rebuild_takes_is_of_the_latest_request(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        base = await studio.built()
        studio.secrets = {"st-1": {"A": "1"}, "st-2": {"A": "1"}, "st-3": {"A": "2"}}
        ask: dict[str, Any] = {
            "dockerfile": [],
            "bases": [("base", base.image_id)],
            "function": FunctionStep("def f(): ...", b"globals"),
        }
        image = await studio.built(**ask, inputs=BuildInputs("fu-1"), secret_ids=["st-1"])
        assert studio.service.needed() == ({"fu-1"}, {"st-1"})
        again = await studio.built(**ask, inputs=BuildInputs("fu-2"), secret_ids=["st-2"])
        assert (again.image_id, again.build_id) == (image.image_id, image.build_id)
        assert studio.service.needed() == ({"fu-2"}, {"st-2"})
        await studio.restart()
        assert studio.service.needed() == ({"fu-2"}, {"st-2"})
        studio.functions.error = "it is broken by now"
        failed = await studio.built(**ask, inputs=BuildInputs("fu-3"), secret_ids=["st-3"])
        assert failed.status is ImageStatus.FAILED
        assert studio.service.needed() == ({"fu-2"}, {"st-2"})

    run(tmp_path, check)


def test_large_arguments_of_a_function_are_kept_by_their_content(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        base = await studio.built()
        studio.blobs = {"bl-1": b"large", "bl-2": b"large", "bl-3": b"other"}
        built = [
            await studio.built(
                dockerfile=[],
                bases=[("base", base.image_id)],
                function=FunctionStep("def f(): ...", b"", args_blob_id=blob, data_format=1),
                inputs=BuildInputs("fu-1"),
            )
            for blob in studio.blobs
        ]
        assert built[0].image_id == built[1].image_id != built[2].image_id
        assert [step.args for _, step, _ in studio.functions.asked] == [b"large", b"other"]
        assert not any(step.args_blob_id for _, step, _ in studio.functions.asked)

    run(tmp_path, check)


def test_a_function_that_fails_fails_the_build(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        base = await studio.built()
        studio.functions.error = "run_function(f) failed: ValueError('no')"
        image = await studio.built(
            dockerfile=[],
            bases=[("base", base.image_id)],
            function=FunctionStep("def f(): ...", b""),
            inputs=BuildInputs("fu-1"),
        )
        assert image.status is ImageStatus.FAILED
        assert image.error == studio.functions.error
        with pytest.raises(InvalidError, match="one base"):
            await studio.ask(dockerfile=[], function=FunctionStep("x", b""))

    run(tmp_path, check)


# ── names ───────────────────────────────────────────────────────────────────────────────────────


def test_a_name_means_what_was_published_last(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        environments = EnvironmentService(studio.database, SystemClock(), studio.operations)
        await environments.start()
        names = NamedImages(
            ImageNameStore(studio.database),
            studio.service,
            environments,
            SystemClock(),
            studio.operations,
        )
        one, two = await studio.built(), await studio.built("FROM python:3.12-slim")
        published: dict[str, str] = {"environment": "", "published_by": "me"}
        await names.publish(one.image_id, "model", **published, revision_id="ir-1")
        await names.publish(one.image_id, "model", **published, revision_id="ir-1")
        await names.publish(two.image_id, "main/model:latest", **published, revision_id="ir-2")
        await names.publish(one.image_id, "model_x:v1", **published, revision_id="ir-3")
        assert (await names.find("model", environment="main")).image_id == two.image_id
        _, name, rows, token = await names.revisions("model", environment="", before="", limit=1)
        assert (name, [row.revision_id for row in rows]) == ("model:latest", ["ir-2"])
        _, _, rows, token = await names.revisions("model", environment="", before=token, limit=5)
        assert ([row.revision_id for row in rows], token) == (["ir-1"], "")
        listing: dict[str, Any] = {"environment": "", "after": "", "limit": 0}
        _, found, _ = await names.list(prefix="model_", image_id="", **listing)
        assert [each.name for each, _ in found] == ["model_x:v1"]
        _, found, _ = await names.list(prefix="", image_id=two.image_id, **listing)
        assert [each.name for each, _ in found] == ["model:latest"]
        await names.delete_image(two.image_id)
        assert (await names.find("model", environment="")).image_id == one.image_id
        await names.delete("model", environment="")
        with pytest.raises(NotFoundError, match="publish it first"):
            await names.find("model", environment="")
        with pytest.raises(InvalidError, match="cannot name an image"):
            await names.find("no blanks:x", environment="")
        with pytest.raises(NotFoundError):
            await names.publish("im-none", "model", **published, revision_id="ir-4")

    run(tmp_path, check)


# ── upkeep ──────────────────────────────────────────────────────────────────────────────────────


def test_layers_that_were_deleted_are_built_again_before_use(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        base = await studio.built()
        child = await studio.built("FROM base", bases=[("base", base.image_id)])
        assert await studio.service.ready(child.image_id) == child
        studio.lost.update([*base.layers, *child.layers])
        image = await studio.service.ready(child.image_id)
        built = [message.dockerfile.split()[1] for message in studio.builder.messages]
        assert built == ["python:3.11-slim", "base", "python:3.11-slim", "base"]
        assert image.layers == ["layer-4"]
        studio.lost.update(image.layers)
        assert (await studio.built("FROM base", bases=[("base", base.image_id)])).layers != []
        assert len(studio.builder.messages) == 5
        studio.builder.error = "no mirror"
        studio.lost.update(f"layer-{number}" for number in range(9))
        with pytest.raises(InvalidError, match="could not be built again: no mirror"):
            await studio.service.ready(child.image_id)

    run(tmp_path, check)


def test_whoever_needs_an_image_waits_for_it_to_be_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Studio, "patience_s", 0.02)

    async def check(studio: Studio) -> None:
        image = await studio.built()
        studio.builder.go.clear()
        studio.lost.update(image.layers)
        waiting = asyncio.ensure_future(studio.service.ready(image.image_id))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        assert not studio.builder.cancelled.is_set()
        studio.builder.go.set()
        assert (await waiting).layers == ["layer-2"]

    run(tmp_path, check)


class FakeLayers:
    """What nodes were told."""

    def __init__(self) -> None:
        self.told: list[tuple[list[str], bool]] = []
        self.found: list[tuple[str, list[str]]] = []

    def drop_layers(self, keys: Sequence[str], *, others: bool = False) -> None:
        self.told.append((list(keys), others))

    def found_layers(self, node_id: str, keys: Sequence[str]) -> None:
        self.found.append((node_id, list(keys)))

    async def prune_caches(self) -> int:
        return 7


def test_what_is_removed_and_what_stays(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        environments = EnvironmentService(studio.database, SystemClock(), studio.operations)
        await environments.start()
        store = ImageNameStore(studio.database)
        names = NamedImages(store, studio.service, environments, SystemClock(), studio.operations)
        base = await studio.built()
        used = await studio.built("FROM base", bases=[("base", base.image_id)])
        named, idle = await studio.built("FROM x"), await studio.built("FROM y")
        publication: dict[str, str] = {"environment": "", "published_by": ""}
        await names.publish(named.image_id, "kept:v1", **publication, revision_id="ir-1")
        layers = FakeLayers()
        upkeep = ImageUpkeep(studio.service, names, layers, lambda: {used.image_id})
        listed = {image.image_id: image for image in await upkeep.list()}
        assert listed[named.image_id].names == ["kept:v1"]
        assert [image_id for image_id, image in listed.items() if image.in_use] == [used.image_id]
        assert await upkeep.prune(dry_run=True) == [idle.image_id]
        assert layers.told == []
        assert await upkeep.prune(dry_run=False) == [idle.image_id]
        assert layers.told == [(sorted([*base.layers, *used.layers, *named.layers]), True)]
        with pytest.raises(ConflictError, match="used by an app"):
            await upkeep.remove([used.image_id], force=False)
        await upkeep.remove([named.image_id], force=False)
        assert layers.told[-1] == (named.layers, False)
        with pytest.raises(NotFoundError):
            await names.find("kept:v1", environment="")

    run(tmp_path, check)


def test_an_image_is_known_elsewhere_without_a_build(tmp_path: Path) -> None:
    async def check(studio: Studio) -> None:
        environments = EnvironmentService(studio.database, SystemClock(), studio.operations)
        await environments.start()
        store = ImageNameStore(studio.database)
        names = NamedImages(store, studio.service, environments, SystemClock(), studio.operations)
        layers = FakeLayers()
        upkeep = ImageUpkeep(studio.service, names, layers, set)
        base = await studio.built()
        image = await studio.built("FROM base", bases=[("base", base.image_id)])
        bundle = await upkeep.bundle(image.image_id)
        assert [record.image_id for record in bundle.records] == [base.image_id, image.image_id]
        data = msgspec.msgpack.encode(bundle)
        await upkeep.remove([base.image_id, image.image_id], force=True)
        built = len(studio.builder.messages)
        await upkeep.take(msgspec.msgpack.decode(data, type=ImageBundle), "no-1")
        assert await studio.built("FROM base", bases=[("base", base.image_id)]) == image
        assert len(studio.builder.messages) == built
        assert layers.found[-1] == ("no-1", image.layers)

    run(tmp_path, check)
