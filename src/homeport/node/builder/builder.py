"""Image builds: a Dockerfile in, layers and a configuration out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from homeport.kernel import ids
from homeport.kernel.clock import Clock, SystemClock
from homeport.link.messages import BuildImage, ImageConfig, LogEntry
from homeport.node.builder import words
from homeport.node.builder.bases import Bases, default_cache_directory
from homeport.node.builder.context import BuildContext
from homeport.node.builder.dockerfile import Instruction, parse
from homeport.node.builder.errors import BuildError
from homeport.node.builder.flights import Emit, Flights
from homeport.node.builder.hostenv import HostBuildEnvironment, read_host
from homeport.node.builder.probe import ImageProbe, probe_image
from homeport.node.builder.running import entry
from homeport.node.builder.stage import BuildVariables, Stage
from homeport.node.builder.steps import BuildTools, LayerMaker
from homeport.node.layers import LayerStore
from homeport.node.runtime.port import DEFAULT_PATH, Runtime

log = structlog.get_logger(__name__)

_LOG_INSTRUCTION_CHARACTERS = 300
_PLATFORMS = ("", "linux/amd64", "linux/x86_64")


class Mounts(Protocol):
    """Where the builder gets the files of a context mount from."""

    async def layer(self, digest: str) -> Path:
        """A directory that holds the mount's files under their absolute names, made relative.

        Raises ``HomeportError`` if the server does not give them.
        """
        ...


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """A built image. ``python_version`` is what ``python -VV`` prints, empty without a Python."""

    layers: list[str]
    config: ImageConfig
    python_version: str
    libc_version: str


class ImageBuilder:
    """Builds images on one node. Builds that share steps share the work.

    ``network`` is what RUN steps get (``nat`` or ``host``); ``base_cache`` the directory where
    bootstrapped bases are kept for all installations of this machine's user.
    """

    def __init__(
        self,
        runtime: Runtime,
        layers: LayerStore,
        mounts: Mounts,
        work_dir: Path,
        *,
        network: str = "nat",
        base_cache: Path | None = None,
        host: HostBuildEnvironment | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._mounts = mounts
        self._tools = BuildTools(
            runtime=runtime,
            layers=layers,
            flights=Flights(),
            host=host if host is not None else read_host(os.environ),
            cache_dir=work_dir / "cache",
            clock=clock or SystemClock(),
            network=network,
        )
        self._bases = Bases(self._tools, LayerStore(base_cache or default_cache_directory()))

    async def build(
        self, message: BuildImage, on_log: Callable[[list[LogEntry]], None]
    ) -> BuildOutcome:
        """Build ``message``. Raises ``BuildError`` naming the instruction that failed.

        Cancelling it ends its containers; nothing is left but the layers that were complete.
        """
        timeout_s = message.timeout_s or None
        try:
            async with asyncio.timeout(timeout_s):
                return await self._build(message, on_log)
        except TimeoutError:
            raise BuildError(f"the build did not end within {timeout_s:.0f} seconds") from None

    async def _build(self, message: BuildImage, emit: Emit) -> BuildOutcome:
        instructions = parse(message.dockerfile)
        maker = await self._maker(message, emit)
        variables = BuildVariables(dict(message.build_args))
        stage: Stage | None = None
        for number, instruction in enumerate(instructions):
            shown = _shorten(instruction.text)
            emit([entry(f"=> Step {number + 1}/{len(instructions)} : {shown}\n")])
            try:
                stage = await self._step(instruction, stage, variables, message, maker)
            except BuildError as error:
                raise BuildError(f"{shown} failed: {error.message}") from error
            except (words.WordsError, OSError) as error:
                raise BuildError(f"{shown} failed: {error}") from error
        if stage is None:
            raise BuildError("the Dockerfile has no FROM")
        probe = await self._probe(stage, message)
        return BuildOutcome(stage.layers, stage.config, probe.python_version, probe.libc_version)

    async def _maker(self, message: BuildImage, emit: Emit) -> LayerMaker:
        root = await self._mounts.layer(message.context_mount) if message.context_mount else None
        return LayerMaker(
            tools=self._tools,
            context=BuildContext(root, message.context_mount, message.context_files),
            builder_version=message.builder_version,
            limits=message.limits,
            emit=emit,
            salt=ids.new("bd") if message.no_cache else "",
        )

    async def _step(
        self,
        instruction: Instruction,
        stage: Stage | None,
        variables: BuildVariables,
        message: BuildImage,
        maker: LayerMaker,
    ) -> Stage | None:
        if instruction.name == "FROM":
            if stage is not None:
                raise BuildError(
                    "a second FROM (a multi-stage build) is not supported by Homeport's image "
                    "builder yet"
                )
            layers, config = await self._from(instruction, variables, message, maker.emit)
            return Stage(layers, config, variables, dict(message.secret_env), maker)
        if stage is not None:
            await stage.execute(instruction)
        elif instruction.name == "ARG":
            variables.declare_global(instruction)
        else:
            raise BuildError("only ARG may come before FROM")
        return stage

    async def _from(
        self,
        instruction: Instruction,
        variables: BuildVariables,
        message: BuildImage,
        emit: Emit,
    ) -> tuple[list[str], ImageConfig]:
        scope = variables.for_from()
        platform = words.expand(instruction.flags.get("platform", ""), scope)
        if platform not in _PLATFORMS:
            raise BuildError(f"images for {platform} cannot be built here, only linux/amd64")
        name = words.split(instruction.value, scope)[0] if instruction.value else ""
        if name in message.bases:
            layers, config = message.bases[name]
            missing = [key for key in layers if not self._tools.layers.has(key)]
            if missing:
                raise BuildError(
                    f"layers of {name} are not on this node any more "
                    f"({len(missing)} of {len(layers)}); build it again with force_build=True"
                )
            return list(layers), config
        if name == "scratch":
            return [], ImageConfig()
        if not name:
            raise BuildError("needs the name of an image")
        base = await self._bases.get(name, emit)
        return list(base.layers), base.config

    async def _probe(self, stage: Stage, message: BuildImage) -> ImageProbe:
        path = stage.config.env.get("PATH", DEFAULT_PATH)
        return await probe_image(self._tools, stage.layers, path, message.limits)


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    if len(line) <= _LOG_INSTRUCTION_CHARACTERS:
        return line
    return line[: _LOG_INSTRUCTION_CHARACTERS - 1] + "…"
