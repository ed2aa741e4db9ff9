"""Which tasks could use one and the same template."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from homeport.link.messages import StartTask
from homeport.node import wire

ENTRYPOINT: Final = ("python", "-m", "modal._container_entrypoint")
_LATER: Final = frozenset(
    {
        "task_id", "function_id", "app_id", "arguments", "startup_timeout_s", "input_timeout_s",
        "max_concurrent", "target_concurrent", "batch_max_size", "batch_linger_ms", "single_use",
        "is_server", "server_port", "memory_snapshot", "deployed",
    }
)  # fmt: skip
"""What of a start matters only when its client has been imported; anything else makes a kind."""
_BEFORE: Final = tuple(
    name for name in StartTask.__struct_fields__ if name not in {*_LATER, "env", "volumes"}
)


def template_key(start: StartTask) -> str:
    """Equal for tasks whose containers do not differ until the client has been imported.

    Empty for a task that no template can serve. The whole environment is part of it, secrets too:
    a template's process has the variables of its task from its beginning, and is never shared
    between Homeport's environments, whose name is one of them.
    """
    if tuple(start.command) != ENTRYPOINT:
        return ""  # an image's own entry point is the user's code, and may ask who it is
    if start.runtime == "runsc":
        return ""  # a kernel for each that waits, and nothing can be mounted in it later
    if start.commit_layer or start.buckets or start.gpus:
        return ""  # runs once; or has what a running container cannot be given
    searched = [part for part in start.env.get("PYTHONPATH", "").split(":") if part]
    for ref in start.volumes:
        place = ref.path.rstrip("/") + "/"
        if any((path + "/").startswith(place) for path in ("/root", "/pkg", *searched)):
            return ""  # what is imported may come from the volume
    parts = [getattr(start, name) for name in _BEFORE]
    env = sorted(start.env.items())
    volumes = [ref.volume_id for ref in start.volumes]
    return hashlib.sha256(
        msgspec.msgpack.encode([*parts, env, volumes, _own_program(start)])
    ).hexdigest()


def takes_snapshot(start: StartTask) -> bool:
    """Whether a template of it is at the program's memory snapshot, not just at the client's import."""
    return start.memory_snapshot and not start.is_server


def _own_program(start: StartTask) -> list[object]:
    """What else makes a difference to a program that is run up to its snapshot."""
    if not takes_snapshot(start):
        return []
    return [
        start.function_id,
        wire.arguments_of(start.arguments, ""),
        [msgspec.structs.astuple(ref) for ref in start.volumes],
    ]
