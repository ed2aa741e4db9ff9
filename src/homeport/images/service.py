"""Use cases of images: asked for by content, built once, followed while building."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import Final, Protocol

import msgspec
import structlog

from homeport.images.live import PATIENCE_S, LiveBuild
from homeport.images.model import (
    CONTEXT_FILES_BYTES_MAX,
    FunctionStep,
    ImageRecord,
    ImageRequest,
    ImageStatus,
    Recipe,
    contents_digest,
    function_layer,
    image_id_of,
)
from homeport.images.store import ImageStore
from homeport.kernel import ids
from homeport.kernel.clock import Clock, SystemClock
from homeport.kernel.errors import (
    ConflictError,
    HomeportError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from homeport.kernel.resources import Limits
from homeport.link.messages import BuildFile, BuildFinished, BuildImage, ImageConfig, LogEntry
from homeport.storage.database import Step

log = structlog.get_logger(__name__)

BUILD_TIMEOUT_S: Final = 2 * 3600.0
"""Longest build: beyond it something hangs (an instruction that waits for a terminal, a mirror)."""
NODE_WAIT_S: Final = 30.0
"""A restarted node is back well within it."""
_NODE_RETRY_S: Final = 1.0
"""Between two tries to find a node: nodes say nothing to images when they come."""
_MESSAGE_ENTRIES_MAX: Final = 500
_FORCED_MAX: Final = 4_096

_WITHOUT_GPU = (
    "commands of an image run without a GPU on Homeport; Image.run_function(gpu=) has one"
)
LogSink = Callable[[ImageRecord, list[LogEntry]], None]


class Builder(Protocol):
    """Builds images somewhere."""

    async def build(
        self, message: BuildImage, on_log: Callable[[list[LogEntry]], None]
    ) -> BuildFinished:
        """Build ``message``; the outcome, good or bad. Raises ``UnavailableError``."""
        ...


class FunctionBuilder(Protocol):
    """Runs a function once and keeps what it changed as a layer."""

    async def build(
        self,
        function_id: str,
        step: FunctionStep,
        *,
        layer: str,
        build_id: str,
        on_log: Callable[[list[LogEntry]], None],
    ) -> None:
        """Afterwards ``layer`` is there. Raises ``InvalidError`` with the function's failure."""
        ...


class BuildEvent(msgspec.Struct, frozen=True):
    """What a follower of a build is told: output, or the end (``outcome``)."""

    entry_id: str = ""
    entries: list[LogEntry] = []
    outcome: ImageRecord | None = None


class ImageService:
    """Images of the installation.

    ``mount_digest`` maps a mount id to its content's digest, ``secret_env`` secret ids to their
    variables, ``read_blob`` a blob id to its bytes; ``prepare_volume`` sees to it that a volume has a
    directory (its path, empty for the volume itself). ``log_sink`` also gets all build output. A build waits ``node_wait_s`` for a node, and
    is cancelled when nobody has followed it for ``patience_s`` (its clients were interrupted).
    """

    def __init__(
        self,
        store: ImageStore,
        builder: Builder,
        *,
        mount_digest: Callable[[str], Awaitable[str]],
        secret_env: Callable[[Sequence[str]], Awaitable[dict[str, str]]],
        read_blob: Callable[[str], Awaitable[bytes]],
        prepare_volume: Callable[[str, str], Awaitable[None]],
        function_builder: FunctionBuilder | None = None,
        build_timeout_s: float = BUILD_TIMEOUT_S,
        has_layers: Callable[[Sequence[str]], bool] = lambda keys: True,
        limits: Limits | None = None,
        clock: Clock | None = None,
        log_sink: LogSink | None = None,
        node_wait_s: float = NODE_WAIT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._store = store
        self._builder = builder
        self._mount_digest = mount_digest
        self._secret_env = secret_env
        self._read_blob = read_blob
        self._prepare_volume = prepare_volume
        self._function_builder = function_builder
        self._limits = limits or Limits()
        self._has_layers = has_layers
        self._build_timeout_s = build_timeout_s
        self._clock = clock or SystemClock()
        self._log_sink = log_sink
        self._node_wait_s = node_wait_s
        self._patience_s = patience_s
        self._records: dict[str, ImageRecord] = {}
        self._live: dict[str, LiveBuild] = {}
        self._forced: dict[tuple[str, str], None] = {}

    async def start(self) -> None:
        """Load what is known. Builds that a crash interrupted start again when asked for."""
        self._records = {record.image_id: record for record in await self._store.load()}

    async def stop(self) -> None:
        """End the builds under way; asking again starts them anew."""
        tasks = [live.task for live in self._live.values() if live.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ── look-ups ────────────────────────────────────────────────────────────────────────────

    def get(self, image_id: str) -> ImageRecord:
        """An image that containers can start from. Raises ``NotFoundError``, ``InvalidError``."""
        record = self.find(image_id)
        if record is None:
            raise NotFoundError(f"Image {image_id!r} does not exist")
        if not record.is_usable:
            why = f" ({record.error})" if record.error else ""
            raise InvalidError(f"Image {image_id!r} has not been built{why}; build it first")
        return record

    async def ready(self, image_id: str) -> ImageRecord:
        """As ``get``; layers that nodes deleted to make room are built again first."""
        record = self.get(image_id)
        if self._has_layers(record.layers):
            return record
        for step in self.chain(image_id):
            if not self._has_layers(step.layers):
                await self._rebuild(step)
        return self.get(image_id)

    async def _rebuild(self, record: ImageRecord) -> None:
        if record.is_snapshot:
            raise InvalidError(
                f"Image {record.image_id!r} is a snapshot of a sandbox, and its files are on no "
                "node any more"
            )
        live = self._live.get(record.image_id)
        if live is None:
            log.info("an image is built again: its layers were deleted", image=record.image_id)
            again = msgspec.structs.replace(
                record,
                build_id=ids.new("bd"),
                status=ImageStatus.BUILDING,
                started_at=self._clock.now(),
            )
            live = await self._resume(again)
        with live.followed():
            while live.outcome is None:
                await live.changed(NODE_WAIT_S)
        if live.outcome.status is not ImageStatus.SUCCEEDED:
            raise InvalidError(
                f"Image {record.image_id!r} was not on the node any more and could not be built "
                f"again: {live.outcome.error}"
            )

    def find(self, image_id: str) -> ImageRecord | None:
        """An image in whatever state; ``None`` if unknown."""
        return self._records.get(image_id)

    def chain(self, image_id: str) -> list[ImageRecord]:
        """The image and those it was built from, oldest first. Raises ``NotFoundError``."""
        steps: list[ImageRecord] = []
        record = self.find(image_id)
        if record is None:
            raise NotFoundError(f"Image {image_id!r} does not exist")
        while record is not None and record not in steps:
            steps.append(record)
            bases = record.recipe.bases
            record = self.find(bases[0][1]) if bases else None
        return steps[::-1]

    def check_deletable(self, image_id: str) -> None:
        """Raises ``NotFoundError``, ``ConflictError`` while it is being built."""
        if self.find(image_id) is None:
            raise NotFoundError(f"Image {image_id!r} does not exist")
        if image_id in self._live:
            raise ConflictError(f"Image {image_id!r} is being built; delete it afterwards")

    async def delete(self, image_id: str, recorded: Step) -> None:
        """Forget an image, with the record of the operation. Raises as ``check_deletable``."""
        self.check_deletable(image_id)
        del self._records[image_id]
        await self._store.delete(image_id, recorded)

    def needed(self) -> tuple[set[str], set[str]]:
        """Ids of the functions and the secrets without which usable images cannot be rebuilt."""
        functions: set[str] = set()
        secrets: set[str] = set()
        for record in self._records.values():
            if record.is_usable:
                functions.add(record.inputs.function_id)
                secrets.update(record.secret_ids, [record.inputs.registry_secret_id])
        return functions - {""}, secrets - {""}

    def all(self) -> list[ImageRecord]:
        """Every image."""
        return list(self._records.values())

    async def take(self, record: ImageRecord) -> None:
        """Take over an image that was built elsewhere; one that is built here stays."""
        known = self._records.get(record.image_id)
        if record.image_id in self._live or (known is not None and self._is_whole(known)):
            return
        self._records[record.image_id] = record
        await self._store.save(record)

    def _is_whole(self, record: ImageRecord) -> bool:
        return record.status is ImageStatus.SUCCEEDED and self._has_layers(record.layers)

    # ── building ────────────────────────────────────────────────────────────────────────────

    async def get_or_create(self, request: ImageRequest) -> ImageRecord:
        """The image of that recipe. If it is not built yet, its build is under way afterwards.

        The same contents give the same image and share one build. Raises ``InvalidError`` for a
        recipe that cannot be built and ``NotFoundError`` for what it refers to.
        """
        recipe, env = await self._recipe(request)
        salt = request.app_id or ids.new(ids.IMAGE) if request.ignore_cache else ""
        image_id = image_id_of(recipe, salt)
        live = self._live.get(image_id)
        record = self._records.get(image_id)
        if live is not None and record is not None:
            return record
        again = request.force_build and self._forces(request.app_id, image_id)
        is_built = record is not None and record.status is ImageStatus.SUCCEEDED
        if record is not None and is_built and not again and self._has_layers(record.layers):
            return await self._refresh(record, request)
        no_cache = request.ignore_cache or request.force_build
        return await self._begin(image_id, recipe, request, env, no_cache)

    async def follow(
        self,
        image_id: str,
        *,
        timeout_s: float,
        last_entry_id: str = "",
        with_finished_log: bool = False,
    ) -> AsyncGenerator[BuildEvent]:
        """Output of the image's build from after ``last_entry_id``, then its end, if it comes.

        Without an end within ``timeout_s`` it just stops. Raises ``NotFoundError``.
        """
        record = self.find(image_id)
        if record is None:
            raise NotFoundError(f"Image {image_id!r} does not exist")
        live = self._live.get(image_id)
        if live is None and record.status is ImageStatus.BUILDING:
            live = await self._resume(record)
        if live is not None:
            with live.followed():
                async for event in _follow_live(live, last_entry_id, timeout_s):
                    yield event
            return
        if with_finished_log or last_entry_id.startswith(f"{record.build_id}:"):
            entries = await self._store.log(image_id)
            for event in _batches(record.build_id, entries, _index(last_entry_id, record.build_id)):
                yield event
        yield BuildEvent(outcome=record)

    async def _recipe(self, request: ImageRequest) -> tuple[Recipe, dict[str, str]]:
        if not request.dockerfile and request.function is None:
            raise InvalidError("the image has neither Dockerfile commands nor a function to run")
        if request.function is not None and (len(request.bases) != 1 or request.dockerfile):
            raise InvalidError("an image made by a function has one base and no other commands")
        size = sum(len(file.data) for file in request.context_files)
        if size > CONTEXT_FILES_BYTES_MAX:
            limit = CONTEXT_FILES_BYTES_MAX // 2**20
            raise InvalidError(f"the files sent with the image's recipe are over {limit} MiB")
        for name, image_id in request.bases:
            base = self.find(image_id)
            if base is None or not base.is_usable:
                raise InvalidError(f"the base image {name} ({image_id}) has not been built")
        env = await self._secret_env(request.secret_ids) if request.secret_ids else {}
        digest = (
            await self._mount_digest(request.context_mount_id) if request.context_mount_id else ""
        )
        for ref in request.volumes:
            await self._prepare_volume(ref.volume_id, ref.sub_path)
        registry = await self._registry_env(request.inputs.registry_secret_id)
        recipe = Recipe(
            dockerfile=request.dockerfile,
            bases=request.bases,
            context_files=sorted(request.context_files, key=lambda file: file.name),
            context_digest=digest,
            build_args=request.build_args,
            secret_digest=contents_digest(env),
            builder_version=request.builder_version,
            registry_secret_digest=contents_digest(registry),
            function=await self._function(request.function),
            volumes=request.volumes,
        )
        return recipe, env

    async def _function(self, step: FunctionStep | None) -> FunctionStep | None:
        """The step with its arguments at hand: a blob's id is new each time and the blob expires.

        Arguments too large to keep stay a blob; such a step is never found built.
        """
        if step is None or not step.args_blob_id:
            return step
        args = await self._read_blob(step.args_blob_id)
        if len(args) > CONTEXT_FILES_BYTES_MAX:
            return step
        return msgspec.structs.replace(step, args=args, args_blob_id="")

    async def _refresh(self, record: ImageRecord, request: ImageRequest) -> ImageRecord:
        """Have a later rebuild use what this request refers to: it belongs to a newer app."""
        if (record.secret_ids, record.inputs) == (request.secret_ids, request.inputs):
            return record
        fresh = msgspec.structs.replace(
            record, secret_ids=request.secret_ids, inputs=request.inputs
        )
        self._records[record.image_id] = fresh
        await self._store.save(fresh)
        return fresh

    async def _registry_env(self, secret_id: str) -> dict[str, str]:
        return await self._secret_env([secret_id]) if secret_id else {}

    def _forces(self, app_id: str, image_id: str) -> bool:
        """Whether this is the app's first demand to rebuild (each of its functions repeats it)."""
        key = (app_id, image_id)
        if app_id and key in self._forced:
            return False
        while len(self._forced) >= _FORCED_MAX:
            del self._forced[next(iter(self._forced))]
        self._forced[key] = None
        return True

    async def _begin(
        self,
        image_id: str,
        recipe: Recipe,
        request: ImageRequest,
        env: dict[str, str],
        no_cache: bool,
    ) -> ImageRecord:
        now = self._clock.now()
        previous = self._records.get(image_id)
        record = ImageRecord(
            image_id=image_id,
            recipe=recipe,
            secret_ids=request.secret_ids,
            app_id=request.app_id,
            status=ImageStatus.BUILDING,
            created_at=previous.created_at if previous else now,
            build_id=ids.new("bd"),
            started_at=now,
            inputs=request.inputs,
        )
        if previous is not None and previous.is_usable:
            record = _keep_outcome(record, previous)
        if request.force_build:
            self._forced[(request.app_id, image_id)] = None
        self._launch(record, env, no_cache)
        await self._store.save(record)
        return record

    async def _resume(self, record: ImageRecord) -> LiveBuild:
        env = await self._secret_env(record.secret_ids) if record.secret_ids else {}
        live = self._live.get(record.image_id)
        return live if live is not None else self._launch(record, env, no_cache=False)

    def _launch(self, record: ImageRecord, env: dict[str, str], no_cache: bool) -> LiveBuild:
        sink = partial(self._log_sink, record) if self._log_sink is not None else None
        live = LiveBuild(record.image_id, record.build_id, sink, patience_s=self._patience_s)
        self._records[record.image_id] = record
        self._live[record.image_id] = live
        live.launch(self._run(live, record, env, no_cache))
        return live

    async def _run(
        self, live: LiveBuild, record: ImageRecord, env: dict[str, str], no_cache: bool
    ) -> None:
        try:
            if record.recipe.function is not None:
                outcome = await self._run_function(record, live, no_cache)
            else:
                if record.inputs.gpu:
                    text = f"gpu={record.inputs.gpu!r}: {_WITHOUT_GPU}\n"
                    live.append([LogEntry(3, time.time_ns(), text)])
                message = await self._message(record, env, no_cache)
                finished = await self._build(message, live)
                outcome = self._outcome(record, finished)
        except asyncio.CancelledError:
            if not live.is_abandoned:
                self._live.pop(record.image_id, None)
                raise
            log.info("an image build was cancelled: nobody waits for it", image=record.image_id)
            outcome = self._failed(record, "the build was cancelled: nobody waited for it any more")
        except HomeportError as error:
            outcome = self._failed(record, error.message)
        except Exception as error:
            log.exception("an image build broke", image=record.image_id)
            outcome = self._failed(record, f"the build broke: {type(error).__name__}: {error}")
        await self._conclude(live, outcome)

    async def _run_function(
        self, record: ImageRecord, live: LiveBuild, no_cache: bool
    ) -> ImageRecord:
        """Have the recipe's function run on its base; the base with one layer more."""
        recipe, base = record.recipe, self.get(record.recipe.bases[0][1])
        function_id = record.inputs.function_id
        if self._function_builder is None or recipe.function is None or not function_id:
            raise InvalidError("the image's function is not known here; run its app again")
        salt = record.build_id if no_cache else ""
        layer = function_layer(recipe, base.layers[-1] if base.layers else "", salt)
        await self._function_builder.build(
            function_id, recipe.function, layer=layer, build_id=record.build_id, on_log=live.append
        )
        done = BuildFinished(
            0, "", "", [*base.layers, layer], base.config, base.python_version_info
        )
        return self._outcome(record, msgspec.structs.replace(done, libc_version=base.libc_version))

    async def _build(self, message: BuildImage, live: LiveBuild) -> BuildFinished:
        """Have it built; a node that restarts, or has not come back yet, is waited for."""
        deadline = self._clock.monotonic() + self._node_wait_s
        said = ""
        while True:
            began = self._clock.monotonic()
            try:
                return await self._builder.build(message, live.append)
            except UnavailableError as error:
                now = self._clock.monotonic()
                if now - began > _NODE_RETRY_S:  # it was built for a while: the wait starts now
                    deadline = now + self._node_wait_s
                if now >= deadline:
                    raise
                text = f"{error.message}; waiting for a node\n"
                if text != said:
                    live.append([LogEntry(3, time.time_ns(), text)])
                    said = text
                await asyncio.sleep(_NODE_RETRY_S)

    async def _conclude(self, live: LiveBuild, outcome: ImageRecord) -> None:
        live.ending()
        try:
            await self._store.save_log(outcome.image_id, outcome.build_id, live.entries)
            await self._store.save(outcome)
        except Exception:
            log.exception("an image's build could not be recorded", image=outcome.image_id)
        self._records[outcome.image_id] = outcome
        self._live.pop(outcome.image_id, None)
        live.finish(outcome)

    async def _message(
        self, record: ImageRecord, env: dict[str, str], no_cache: bool
    ) -> BuildImage:
        recipe = record.recipe
        bases: dict[str, tuple[list[str], ImageConfig]] = {}
        for name, image_id in recipe.bases:
            base = self.get(image_id)
            bases[name] = (base.layers, base.config)
        return BuildImage(
            build_id=record.build_id,
            dockerfile="\n".join(recipe.dockerfile) + "\n",
            bases=bases,
            context_mount=recipe.context_digest,
            context_files=[BuildFile(file.name, file.data) for file in recipe.context_files],
            build_args=recipe.build_args,
            secret_env=env,
            builder_version=recipe.builder_version,
            limits=self._limits,
            timeout_s=self._build_timeout_s,
            no_cache=no_cache,
            registry_kind=record.inputs.registry_kind,
            registry_env=await self._registry_env(record.inputs.registry_secret_id),
            volumes=recipe.volumes,
        )

    def _outcome(self, record: ImageRecord, finished: BuildFinished) -> ImageRecord:
        if finished.error:
            return self._failed(record, finished.error)
        return msgspec.structs.replace(
            record,
            status=ImageStatus.SUCCEEDED,
            error="",
            finished_at=self._clock.now(),
            layers=finished.layers,
            config=finished.config,
            python_version_info=finished.python_version,
            libc_version=finished.libc_version,
        )

    def _failed(self, record: ImageRecord, error: str) -> ImageRecord:
        return msgspec.structs.replace(
            record, status=ImageStatus.FAILED, error=error, finished_at=self._clock.now()
        )


def _keep_outcome(record: ImageRecord, previous: ImageRecord) -> ImageRecord:
    """``record`` with the build that containers go on using until the new one is done."""
    return msgspec.structs.replace(
        record,
        finished_at=previous.finished_at,
        layers=previous.layers,
        config=previous.config,
        python_version_info=previous.python_version_info,
        libc_version=previous.libc_version,
    )


async def _follow_live(
    live: LiveBuild, last_entry_id: str, timeout_s: float
) -> AsyncGenerator[BuildEvent]:
    deadline = time.monotonic() + timeout_s
    index = _index(last_entry_id, live.build_id)
    while True:
        outcome = live.outcome
        entries, end = live.after(index)
        for event in _batches(live.build_id, entries, 0, end - len(entries)):
            yield event
        index = end
        if outcome is not None:
            yield BuildEvent(outcome=outcome)
            return
        if live.after(index)[0] or live.outcome is not None:
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            return
        await live.changed(left)


def _batches(
    build_id: str, entries: list[LogEntry], start: int, first: int = 0
) -> list[BuildEvent]:
    """Events for ``entries[start:]``; ``first`` is the index of ``entries[0]``."""
    events: list[BuildEvent] = []
    for position in range(start, len(entries), _MESSAGE_ENTRIES_MAX):
        batch = entries[position : position + _MESSAGE_ENTRIES_MAX]
        events.append(BuildEvent(f"{build_id}:{first + position + len(batch)}", batch))
    return events


def _index(entry_id: str, build_id: str) -> int:
    """How many entries of this build the client has seen; 0 if it saw another build."""
    seen, _, number = entry_id.rpartition(":")
    return int(number) if seen == build_id and number.isdigit() else 0
