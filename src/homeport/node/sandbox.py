"""A sandbox's life on its node: a container that runs somebody's program and nothing of ours."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import termios
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Final, Protocol

import structlog

from homeport.kernel.clock import Clock
from homeport.kernel.errors import (
    ConflictError,
    DeadlineError,
    NotFoundError,
    UnavailableError,
)
from homeport.link.messages import (
    LogEntry,
    Message,
    RunningTask,
    SandboxReady,
    SandboxStarted,
    StartSandbox,
    TaskExited,
    TerminalRef,
    UsageSample,
)
from homeport.node.container_images import ContainerImages
from homeport.node.logs import STDERR, STDOUT, LogPump
from homeport.node.prepare import Prepared, Preparer
from homeport.node.probes import Probe
from homeport.node.runtime.port import (
    DEFAULT_PATH,
    Bind,
    CheckpointError,
    Container,
    ContainerSpec,
    Egress,
    Exit,
    RuntimeUnavailableError,
)
from homeport.node.stdio import Stdio
from homeport.node.task import START_ERRORS
from homeport.node.usage import UsageMeter

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

TIMEOUT: Final = "timeout"
IDLE: Final = "idle"
SNAPSHOT: Final = "snapshot"
CONSOLE: Final = "/dev/console"

ExitReporter = Callable[[TaskExited], None]
Exec = Callable[["Sandbox", list[str]], Awaitable[int]]
"""Runs a command in a running sandbox; its exit code."""
KeepFiles = Callable[["Sandbox", Prepared], Awaitable[None]]
"""Makes the files of an ended sandbox an image; reports it itself."""


class Reporter(Protocol):
    """The link, as a sandbox uses it."""

    @property
    def is_congested(self) -> bool: ...
    async def uncongested(self) -> None: ...
    def send_sure(self, message: SandboxStarted | TaskExited) -> None: ...
    async def taken(self, seq: int) -> bool: ...
    def send_kept(self, message: Message) -> None: ...
    def logs(self, task_id: str, entries: list[LogEntry]) -> None: ...


class Sandbox:
    """One sandbox. ``run`` is its whole life; its output can be read afterwards, until ``forget``.

    All methods belong to one event loop.
    """

    def __init__(
        self,
        start: StartSandbox,
        link: Reporter,
        preparer: Preparer,
        clock: Clock,
        execute: Exec | None = None,
        keep: KeepFiles | None = None,
    ) -> None:
        self.start = start
        self._link = link
        self._preparer = preparer
        self._clock = clock
        self._execute = execute
        self._keep = keep
        self._stdio = Stdio(preparer.root, is_terminal=start.terminal is not None)
        self._pump = LogPump(start.task_id, link, lambda: ("", ""), self._stdio.take)
        self.images = ContainerImages(preparer.layers, preparer.root / start.task_id / "images")
        """What is mounted in it while it runs."""
        self._container: Container | None = None
        self._prepared: Prepared | None = None
        self._preparing: asyncio.Task[Prepared] | None = None
        self._running = asyncio.Event()
        self._report_of_start: SandboxStarted | None = None
        """Until the server has acknowledged it."""
        self._ready = asyncio.Event()
        self._ready_at = 0.0
        self._probing: asyncio.Task[None] | None = None
        self._is_over = False
        self._is_killed = False
        self._kill_reason = ""
        self._cut_short = ""
        self._leaving: asyncio.Event | None = None
        """Set when nobody needs its files any more that a memory snapshot is made of."""
        self._active = 0
        self._timeout: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._usage = UsageMeter()

    # ── for those who use it ──────────────────────────────────────────────────────────────────

    @property
    def task_id(self) -> str:
        return self.start.task_id

    @property
    def account_id(self) -> str:
        """The task of the sandbox that it is (part of): what the server knows it by."""
        return self.task_id

    @property
    def image_id(self) -> str:
        return self.start.env.get("MODAL_IMAGE_ID", "")

    @property
    def is_over(self) -> bool:
        """Whether it has ended; its output can still be read."""
        return self._is_over

    @property
    def container(self) -> Container:
        """Raises ``NotFoundError`` before it runs and when it has ended."""
        if self._container is None or self._is_over:
            raise NotFoundError(f"the sandbox {self.start.sandbox_id} is not running")
        return self._container

    @property
    def prepared(self) -> Prepared:
        """Where its files are. Raises ``NotFoundError`` as ``container`` does."""
        if self._prepared is None or self._is_over:
            raise NotFoundError(f"the sandbox {self.start.sandbox_id} is not running")
        return self._prepared

    @property
    def env(self) -> dict[str, str]:
        """The environment of its command."""
        return environment(self.start)

    @property
    def workdir(self) -> str:
        return self.start.workdir

    @property
    def stdio(self) -> Stdio:
        """Its command's streams."""
        return self._stdio

    async def started(self) -> Container:
        """The container, as soon as it runs and the server knows.

        Raises ``NotFoundError`` if it has ended.
        """
        await self._recorded()
        return self.container

    async def _recorded(self) -> None:
        """Until it runs, or has ended, and the server knows: see ``SandboxStarted``."""
        await self._running.wait()
        if self._report_of_start is not None:
            await self._link.taken(self._report_of_start.seq)
            self._report_of_start = None

    async def write_stdin(self, offset: int, data: bytes, *, eof: bool) -> None:
        """See ``Stdin.write``."""
        with self.active():
            await self._recorded()
            await self._stdio.stdin.write(offset, data, eof=eof)

    async def write_stdin_numbered(self, index: int, data: bytes, *, eof: bool) -> None:
        """See ``Stdin.write_numbered``."""
        with self.active():
            await self._recorded()
            await self._stdio.stdin.write_numbered(index, data, eof=eof)

    async def reload_volumes(self) -> None:
        """Show the newest committed state of all volumes. Raises ``HomeportError``."""
        with self.active():
            for ref in self.start.volumes:
                await self.prepared.volumes.reload(ref.volume_id)

    async def set_network(self, egress: Egress | None) -> None:
        """Let it reach this alone from now on; ``None`` = everything.

        Raises ``ConflictError`` for a sandbox without a network, ``UnavailableError``.
        """
        if self.start.block_network:
            raise ConflictError("The sandbox was created without a network and stays without")
        try:
            await self.container.restrict(egress)
        except RuntimeUnavailableError as error:
            raise UnavailableError(str(error)) from error

    async def until_ready(self, timeout_s: float) -> float:
        """When its probe first succeeded (Unix seconds), as soon as it did.

        Raises ``ConflictError`` without a probe or when it ended before, ``DeadlineError``.
        """
        if self.start.probe is None:
            raise ConflictError(
                "The sandbox has no readiness probe: give it one with readiness_probe="
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        if self._ready_at:
            return self._ready_at
        if self._is_over:
            raise ConflictError("The sandbox ended before it was ready")
        raise DeadlineError(f"The sandbox was not ready within {timeout_s:g} s")

    @contextlib.asynccontextmanager
    async def checkpointed(self, directory: Path) -> AsyncGenerator[Prepared]:
        """Its memory is in ``directory``; it has ended, and its files stay for the block's time.

        Raises ``UnavailableError`` where that cannot be done, ``ConflictError`` if it is being done
        or failed: it is no use to try again.
        """
        container, prepared = self.container, self.prepared
        if self._leaving is not None:
            raise ConflictError("A memory snapshot of the sandbox is being taken already")
        self._leaving = asyncio.Event()
        try:
            try:
                await container.checkpoint(directory)
            except RuntimeUnavailableError as error:
                raise UnavailableError(str(error)) from error
            except CheckpointError as error:
                reason = f"its memory could not be saved: {error}"
                self.kill(reason)
                raise ConflictError(f"The sandbox has ended: {reason}") from error
            self._cut_short = self._cut_short or SNAPSHOT
            await container.remove(keep_upper=True)
            yield prepared
        finally:
            self._leaving.set()
            if not self._is_over:
                self._leaving = None

    @contextlib.contextmanager
    def active(self) -> Generator[None]:
        """Somebody uses it: it is not idle for the time of the block."""
        self._active += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            yield
        finally:
            self._active -= 1
            self._arm_idle()

    def forget(self) -> None:
        """Its output is not wanted any more."""
        self._stdio.close()

    # ── for the supervisor ────────────────────────────────────────────────────────────────────

    def running(self) -> RunningTask:
        """What ``Hello`` says of it."""
        return RunningTask(self.task_id, self._running.is_set(), [], gpus=self._gpus())

    def _gpus(self) -> list[str]:
        """The GPUs that it has."""
        return [] if self._is_over else list(self.start.gpus)

    def stop(self, *, graceful: bool, grace_s: float, reason: str = "") -> None:
        """End it at once: nobody asks a sandbox's program."""
        self.kill(reason)

    def kill(self, reason: str) -> None:
        """End it; ``reason`` goes into its report, empty if somebody asked for its end."""
        if self._is_killed:
            return
        self._is_killed = True
        self._kill_reason = reason
        if self._container is not None:
            self._container.kill()
        elif self._preparing is not None:
            self._preparing.cancel()

    def flush(self) -> None:
        """No report waits."""

    def introduce(self) -> None:
        """Nothing of it can have been lost with a connection."""

    async def run(self) -> None:
        """From nothing to nothing; reports every outcome, raises none but cancellation."""
        try:
            await self._run()
        except asyncio.CancelledError:
            raise
        except START_ERRORS as error:
            self._report_unstarted(str(error) or type(error).__name__)
        except Exception as error:
            log.exception("a sandbox failed in the node", task_id=self.task_id)
            self._report_unstarted(f"the node failed to run it: {error!r}")
        finally:
            self._end()

    async def _run(self) -> None:
        if self._is_killed:
            return self._report_unstarted(self._kill_reason)
        self._preparing = asyncio.create_task(self._preparer.prepare(self.start))
        try:
            prepared = await self._preparing
        except asyncio.CancelledError:
            if not self._is_killed:
                raise
            return self._report_unstarted(self._kill_reason)
        try:
            await self._launch_and_wait(prepared)
        finally:
            self.images.close()
            await self._preparer.discard(prepared)

    async def _launch_and_wait(self, prepared: Prepared) -> None:
        if self._is_killed:
            return self._report_unstarted(self._kill_reason)
        container = await self._launch(prepared)
        try:
            ended = await container.wait()
            self._end()
            self._usage.end()
            await prepared.volumes.finish()
            if self._leaving is not None:
                await self._leaving.wait()
            elif self.start.exit_image_id and self._keep is not None:
                await container.remove(keep_upper=True)
                await self._keep(self, prepared)
            self._report_exit(ended)
        finally:
            await container.remove()

    async def _launch(self, prepared: Prepared) -> Container:
        binds = prepared.data()
        if self.start.terminal is not None:
            stdin, stdout, stderr = self._terminal()
            # programs look for the name of their terminal under /dev
            binds += (Bind(Path(os.ttyname(stdin)), CONSOLE, read_only=False),)
        else:
            stdin, stdout, stderr = self._pipes()
        try:
            spec = self._spec(prepared, binds, stdin, stdout, stderr)
            container = await prepared.runtime.start(spec)
        finally:
            for fd in {stdin, stdout, stderr}:
                os.close(fd)
        self._container = container
        self._prepared = prepared
        prepared.volumes.started(container)
        self._usage.begin(container, self._clock)
        try:
            await self._launched(container)
        except BaseException:
            await container.remove()
            raise
        self._running.set()
        loop = asyncio.get_running_loop()
        self._timeout = loop.call_later(self.start.timeout_s, self._cut, TIMEOUT)
        self._arm_idle()
        self._report_of_start = SandboxStarted(0, self.task_id, self._clock.now())
        self._link.send_sure(self._report_of_start)
        if self.start.probe is not None:
            self._probing = loop.create_task(self._probe())
        if self._is_killed:
            container.kill()
        return container

    def usage(self) -> list[UsageSample]:
        """What it has used so far."""
        return self._usage.samples() if self._is_over else self._usage.until_now()

    async def _launched(self, container: Container) -> None:
        """It runs, and nobody has been told yet. Raises as ``run`` expects it."""

    def _spec(
        self, prepared: Prepared, binds: tuple[Bind, ...], stdin: int, stdout: int, stderr: int
    ) -> ContainerSpec:
        start = self.start
        return ContainerSpec(
            id=start.task_id,
            layers=prepared.layers,
            upper=prepared.upper,
            command=tuple(start.command),
            env=self.env,
            workdir=start.workdir,
            hostname="homeport",
            limits=start.limits,
            binds=binds,
            overlays=prepared.volumes.overlays(),
            trees=prepared.buckets.trees(),
            tmpfs=prepared.gpus.tmpfs,
            devices=prepared.gpus.devices,
            hooks=prepared.gpus.hooks,
            groups=prepared.gpus.groups,
            network="none" if start.block_network else "nat",
            egress=_egress(start),
            stdin_fd=stdin,
            stdout_fd=stdout,
            stderr_fd=stderr,
            is_repeated=True,
            can_checkpoint=start.memory_snapshots,
            checkpoint=prepared.memory,
        )

    def _pipes(self) -> tuple[int, int, int]:
        """Three pipes: their ends for the command."""
        stdin_read, stdin_write = os.pipe()
        stdout_read, stdout_write = os.pipe()
        stderr_read, stderr_write = os.pipe()
        self._stdio.stdin.open(stdin_write)
        self._pump.add(stdout_read, STDOUT)
        self._pump.add(stderr_read, STDERR)
        return stdin_read, stdout_write, stderr_write

    def _terminal(self) -> tuple[int, int, int]:
        """A terminal: its end for the command, three times."""
        assert self.start.terminal is not None
        ours, theirs = os.openpty()
        resize(theirs, self.start.terminal)
        self._pump.add(os.dup(ours), STDOUT)
        self._stdio.stdin.open(ours)
        return theirs, theirs, theirs

    async def _probe(self) -> None:
        assert self.start.probe is not None
        assert self._container is not None
        probe = Probe(self.start.probe, self._container, self._run_command)
        await probe.succeeded()
        self._ready_at = self._clock.now()
        self._ready.set()
        self._link.send_kept(SandboxReady(self.task_id, self._ready_at))

    async def _run_command(self, command: list[str]) -> int:
        if self._execute is None:
            raise ConflictError("this node cannot run commands in a sandbox")
        return await self._execute(self, command)

    # ── the end ───────────────────────────────────────────────────────────────────────────────

    def _arm_idle(self) -> None:
        if self._active or self._idle is not None or not self.start.idle_timeout_s:
            return
        if self._running.is_set() and not self._is_over:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(self.start.idle_timeout_s, self._cut, IDLE)

    def _cut(self, why: str) -> None:
        if not self._is_killed:
            self._cut_short = why
            self.kill("")

    def _end(self) -> None:
        """Its processes are gone, or there never were any."""
        self._is_over = True
        self._usage.cancel()
        for timer in (self._timeout, self._idle):
            if timer is not None:
                timer.cancel()
        if self._probing is not None:
            self._probing.cancel()
        self._pump.close()
        self._stdio.finish()
        self._running.set()
        self._ready.set()

    def _report_exit(self, ended: Exit) -> None:
        self._report(
            ended.returncode,
            oom_killed=ended.oom_killed and not self._is_killed,
            reason=self._kill_reason,
            start_failed=False,
        )

    def _report_unstarted(self, reason: str) -> None:
        self._end()
        if not self._is_killed:
            log.warning("a sandbox did not start", task_id=self.task_id, reason=reason)
        self._report(-1, oom_killed=False, reason=reason, start_failed=not self._is_killed)

    def _report(
        self, returncode: int, *, oom_killed: bool, reason: str, start_failed: bool
    ) -> None:
        self._link.send_sure(
            TaskExited(
                seq=0,
                task_id=self.task_id,
                returncode=returncode,
                oom_killed=oom_killed,
                was_ready=self._container is not None,
                unfinished=[],
                unstarted=[],
                reason=reason,
                stderr_tail=self._pump.stderr_tail,
                start_failed=start_failed,
                cut_short=self._cut_short,
                usage=self._usage.samples(),
            )
        )


def _egress(start: StartSandbox) -> Egress | None:
    if start.allowed_cidrs is None:
        return None
    return Egress(tuple(start.allowed_cidrs), tuple(start.allowed_domains))


def environment(start: StartSandbox) -> dict[str, str]:
    """The environment of a sandbox's command."""
    terminal = start.terminal.env if start.terminal is not None else {}
    return {"PATH": DEFAULT_PATH, "HOME": "/root", **start.env, **terminal}


def resize(fd: int, terminal: TerminalRef) -> None:
    """Give a terminal its size."""
    size = struct.pack("HHHH", terminal.rows, terminal.columns, 0, 0)
    fcntl.ioctl(fd, termios.TIOCSWINSZ, size)
