"""What the runtimes share: starting through a stage, keeping track, cleaning up after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from homeport.node.cgroups import OCI_SUFFIX, Cgroup, CgroupProvider
from homeport.node.network import Lease, NetworkProvider
from homeport.node.runtime import linux
from homeport.node.runtime.container import NO_CHECKPOINTS, RunningContainer
from homeport.node.runtime.enter import Entered, Place, enter, enter_program
from homeport.node.runtime.files import FileTemplate
from homeport.node.runtime.handshake import Started, write_init
from homeport.node.runtime.launch import Invocation, Keep, Launch, Shared, root_layers
from homeport.node.runtime.port import (
    Container,
    ContainerSpec,
    ContainerStartError,
    ExecSpec,
    RuntimeUnavailableError,
)
from homeport.node.runtime.records import (
    ContainerDirectory,
    find_processes,
    init_name,
    outer_name,
    remove_tree,
    run_token,
)
from homeport.node.runtime.roots import Roots
from homeport.node.runtime.seccomp import compiled_filter
from homeport.node.runtime.stage import Stage


class StagedRuntime:
    """Starts containers with a tool that is called from a thread with mounts of its own.

    ``run_dir`` holds what is needed to clean up after a crash and belongs to this runtime alone;
    ``network`` and ``cgroups`` give each container its network and its limits. Containers outlive
    the process that started them; the next one's ``sweep`` removes them.
    """

    init_program = "init"
    container_type = RunningContainer
    has_checkpoints = False

    def __init__(
        self,
        run_dir: Path,
        network: NetworkProvider,
        cgroups: CgroupProvider,
        *,
        private_mounts: bool = True,
    ) -> None:
        self._run_dir = run_dir.absolute()
        self._network = network
        self._cgroups = cgroups
        self._token = run_token(self._run_dir)
        self._containers: dict[str, RunningContainer] = {}
        self._starting: set[str] = set()
        self._abandoned: set[asyncio.Future[None]] = set()
        for name in ("containers", "roots", "skeletons"):
            (self._run_dir / name).mkdir(parents=True, exist_ok=True)
        os.chmod(self._run_dir, 0o700)
        self._filter = linux.sealed_memory_file("homeport-seccomp", compiled_filter())
        self._init_fd = write_init(self.init_program)
        self._enter_fd = enter_program()
        self._files = FileTemplate()
        self._hastening: Future[None] | None = None
        self._hastener = ThreadPoolExecutor(1, "homeport-groups")
        # its thread begins here: one that a stage's thread began would share that one's directory
        self._hastener.submit(int)
        self._stage = Stage(self._run_dir / "stage", private=private_mounts)
        self._roots = Roots(self._run_dir / "roots", self._stage)
        self._shared = Shared(
            self._run_dir,
            self._token,
            self._init_fd,
            self._make_cgroup,
            self._hasten,
            self._stage,
            self._roots,
            network.resolver,
        )

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def keeps_control(self) -> bool:
        """See ``launch.Tool``."""
        return False

    @property
    def joins_groups(self) -> bool:
        """See ``launch.Tool``."""
        return False

    @property
    def network(self) -> NetworkProvider:
        """Where its containers get their networks from."""
        return self._network

    @property
    def roots(self) -> Roots:
        """Its root file systems that wait."""
        return self._roots

    async def prepare_root(self, spec: ContainerSpec) -> None:
        """Have one wait for a start as ``spec``; until it does, or could not."""
        await self._roots.prepare(await self._stage.run(lambda: root_layers(self._run_dir, spec)))

    async def start(self, spec: ContainerSpec) -> Container:
        if spec.id in self._containers or spec.id in self._starting:
            raise ContainerStartError(f"there already is a container {spec.id}")
        if spec.can_checkpoint and not self.has_checkpoints:
            raise RuntimeUnavailableError(NO_CHECKPOINTS)
        self._starting.add(spec.id)
        launch = asyncio.ensure_future(self._begin(spec))
        try:
            return await asyncio.shield(launch)
        except asyncio.CancelledError:
            # The thread that starts it goes on: what it has started would be nobody's.
            removal = asyncio.ensure_future(self._abandon(launch))
            self._abandoned.add(removal)
            removal.add_done_callback(self._abandoned.discard)
            await asyncio.shield(removal)
            raise

    async def _begin(self, spec: ContainerSpec) -> Container:
        try:
            lease = await self._network.acquire(spec.network)
            try:
                if spec.egress is not None and spec.network == "nat":
                    await self._network.restrict(lease, spec.egress)
                container = await self._start(spec, lease)
            except BaseException:
                await self._network.release(lease)
                raise
            self._containers[spec.id] = container
            return container
        finally:
            self._starting.discard(spec.id)

    async def _abandon(self, launch: asyncio.Future[Container]) -> None:
        """Remove what was started for one who does not wait for it any more."""
        with contextlib.suppress(ContainerStartError, RuntimeUnavailableError, OSError):
            await (await launch).remove()

    async def sweep(self) -> int:
        return len(await self._stage.run(self._sweep))

    async def close(self) -> None:
        """Remove the containers of this process and everything shared. Idempotent."""
        if self._init_fd < 0:
            return
        if self._abandoned:
            await asyncio.wait(self._abandoned)
        for container in list(self._containers.values()):
            await container.remove()
        await self._roots.close()
        await self._network.close()
        await self._stage.run(self._cgroups.close)
        self._stage.close()
        self._hastener.shutdown(wait=True)
        self._files.close()
        for fd in (self._init_fd, self._enter_fd, self._filter):
            os.close(fd)
        self._init_fd = -1
        for name in ("stage", "roots", "skeletons", "containers"):
            remove_tree(self._run_dir / name)

    def invocation(self, launch: Launch, keep: Keep) -> AbstractContextManager[Invocation]:
        """See ``launch.Tool``."""
        raise NotImplementedError

    def clean(self, container_id: str) -> None:
        """See ``launch.Tool``."""

    def files_process(self, launch: Launch, init: int, outer: int) -> int:
        """See ``launch.Tool``."""
        return init

    async def _start(self, spec: ContainerSpec, lease: Lease) -> RunningContainer:
        launch = Launch(self._shared, self, spec, lease)
        started, outer = await self._stage.run(launch.run)
        return self._container(launch, started, outer, self.clean)

    def _container(
        self, launch: Launch, started: Started, outer: int, clean: Callable[[str], None]
    ) -> RunningContainer:
        if launch.spec.is_repeated and launch.root is not None:
            self._roots.note(launch.root.layers, was_ready=launch.had_root)
        return self.container_type(
            launch.spec,
            started=started,
            outer_pid=outer,
            inside=launch.inside,
            files_fd=launch.files_fd,
            control=launch.control,
            directory=launch.directory,
            work=launch.work,
            cgroup=launch.cgroup,
            lease=launch.lease,
            network=self._network,
            stage=self._stage,
            clean=clean,
            user=launch.user,
            files=self._files,
            enter=self._enter,
            on_removed=self._forget,
        )

    def _enter(self, place: Place, env: dict[str, str], workdir: str, spec: ExecSpec) -> Entered:
        return enter(place, self._enter_fd, self._filter, env, workdir, spec)

    def _forget(self, container_id: str) -> None:
        self._containers.pop(container_id, None)

    def _make_cgroup(self, spec: ContainerSpec) -> Cgroup | None:
        limits = spec.limits
        if not self._cgroups.available() and limits == type(limits)():
            return None
        return self._cgroups.create(spec.id, limits)

    def _hasten(self) -> None:
        if self._hastening is None or self._hastening.done():
            self._hastening = self._hastener.submit(self._cgroups.hasten)

    def _own(self) -> set[str]:
        """Ids of all containers of this process."""
        return {*self._containers, *self._starting}

    def _sweep(self) -> set[str]:
        """Undo everything under our run directory that no container of this process owns.

        Returns what was undone.
        """
        mine = self._own()
        swept = self._kill_strangers(mine)
        groups = {name: name.removesuffix(OCI_SUFFIX) for name in self._cgroups.names()}
        strangers = {name: container for name, container in groups.items() if container not in mine}
        for name in strangers:  # all first: a container may be in two
            self._cgroups.group(name).kill()
        for name, container in strangers.items():
            swept.add(container)
            self._cgroups.remove(name)
        for path in (self._run_dir / "containers").iterdir():
            if path.name in mine:
                continue
            swept.add(path.name)
            directory = ContainerDirectory(path)
            record = directory.record()
            if record is not None:
                remove_tree(Path(record.work))
                remove_tree(Path(record.upper))
            self.clean(path.name)
            directory.remove()
        self._roots.sweep()
        self._network.sweep()
        return swept

    def _kill_strangers(self, mine: set[str]) -> set[str]:
        killed: set[str] = set()
        fds: list[int] = []
        prefixes = (init_name(self._token, ""), outer_name(self._token, ""))
        for pid, name in find_processes(*prefixes).items():
            container = name.rpartition(":")[2]
            if container in mine:
                continue
            killed.add(container)
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                fds.append(fd)
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        wait_for_ends(fds)
        return killed


def wait_for_ends(pidfds: list[int], timeout_s: float = 10.0) -> None:
    """Block until the processes have ended, and close the descriptors."""
    import select
    import time

    deadline = time.monotonic() + timeout_s
    for fd in pidfds:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        os.close(fd)
