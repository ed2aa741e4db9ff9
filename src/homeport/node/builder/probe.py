"""What Python and C library an image has, asked in a container and remembered by its top layer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from homeport.kernel import ids
from homeport.kernel.decoding import UNREADABLE
from homeport.kernel.resources import Limits
from homeport.link.messages import LogEntry
from homeport.node.builder.merged import MergedView
from homeport.node.builder.running import STDOUT, run_in_container
from homeport.node.builder.steps import BuildTools
from homeport.node.layers import layer_key
from homeport.node.runtime.port import ContainerSpec, ContainerStartError, RuntimeUnavailableError

log = structlog.get_logger(__name__)

_MARK = "homeport-libc:"
_SCRIPT = (
    f"python -VV 2>/dev/null || python3 -VV 2>/dev/null; echo {_MARK}; ldd --version 2>/dev/null"
)


class ImageProbe(msgspec.Struct, frozen=True):
    """``python -VV`` and the first line of ``ldd --version``; empty for what is not there."""

    python_version: str = ""
    libc_version: str = ""


async def probe_image(
    tools: BuildTools, layers: Sequence[str], path: str, limits: Limits
) -> ImageProbe:
    """The image's versions. An image without a shell has none that could be asked for."""
    if not layers:
        return ImageProbe()
    record = tools.cache_dir / "probes" / layer_key(layers[-1], path)
    try:
        return msgspec.json.decode(record.read_bytes(), type=ImageProbe)
    except (FileNotFoundError, *UNREADABLE):
        pass
    trees = tuple(tools.layers.path(key) for key in layers)
    if await asyncio.to_thread(MergedView(trees).find, "/bin/sh") is None:
        return ImageProbe()
    probe = await _ask(tools, trees, path, limits)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_bytes(msgspec.json.encode(probe))
    return probe


async def _ask(tools: BuildTools, trees: tuple[Path, ...], path: str, limits: Limits) -> ImageProbe:
    directory = tools.layers.new_work()
    output: list[str] = []

    def collect(entries: list[LogEntry]) -> None:
        output.extend(entry.data for entry in entries if entry.fd == STDOUT)

    spec = ContainerSpec(
        id=ids.new("bd"),
        layers=trees,
        upper=directory / "upper",
        command=("/bin/sh", "-c", _SCRIPT),
        env={"PATH": path, "HOME": "/root"},
        limits=limits,
        network="none",
    )
    try:
        await run_in_container(tools.runtime, spec, collect, keep_upper=False)
    except (ContainerStartError, RuntimeUnavailableError) as error:
        log.warning("could not ask an image for its versions", error=str(error))
        return ImageProbe()
    finally:
        await tools.layers.discard(directory)
    python, _, libc = "".join(output).partition(_MARK)
    return ImageProbe(python.strip(), libc.strip().splitlines()[0] if libc.strip() else "")
