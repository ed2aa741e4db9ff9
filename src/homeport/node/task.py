"""One container's life: prepared, started, served, watched, reported, removed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from homeport.kernel.clock import Clock
from homeport.kernel.errors import ConflictError, HomeportError, NotFoundError
from homeport.link.messages import (
    STATUS_SUCCESS,
    InputItem,
    InputsReturned,
    InputsStarted,
    LogEntry,
    Message,
    OutputItem,
    Outputs,
    Result,
    RunningTask,
    StartTask,
    TaskExited,
    TaskInitFailed,
    TaskReady,
    TaskStopping,
    UsageSample,
)
from homeport.node.container_rpc import ContainerDispatcher, Upstream
from homeport.node.logs import STDERR, STDOUT, LogPump
from homeport.node.prepare import FUNCTION_WORKDIR, Prepared, Preparer, environment
from homeport.node.reports import Reports
from homeport.node.runtime.port import (
    Container,
    ContainerStartError,
    Exit,
    RuntimeUnavailableError,
)
from homeport.node.sockets import serve_unix
from homeport.node.templates.pool import Templates
from homeport.node.templates.template import Template
from homeport.node.tunnels import TunnelPort, Tunnels
from homeport.node.usage import UsageMeter
from homeport.node.volumes.mounted import ContainerVolumes
from homeport.node.work import Effects, Grant, Key, WorkLoop, WorkRules
from homeport.transport.dispatch import (
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    UNIMPLEMENTED,
    StatusError,
)
from homeport.transport.grpc_server import GrpcServer

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

PORT_PAUSE_S = (0.01, 0.2)
"""Between two looks whether a server's port is open: nothing tells."""
START_ERRORS = (ContainerStartError, RuntimeUnavailableError, HomeportError, OSError)


class Reporter(Upstream, Protocol):
    """The link, as a task uses it."""

    @property
    def is_full(self) -> bool: ...
    @property
    def is_congested(self) -> bool: ...
    async def uncongested(self) -> None: ...
    def send(self, message: Message) -> bool: ...
    def send_sure(self, message: Outputs | TaskExited) -> None: ...
    def send_kept(self, message: Message) -> None: ...
    def logs(self, task_id: str, entries: list[LogEntry]) -> None: ...


class Relay(Protocol):
    """What gives a container a way to the server's blobs."""

    async def attach(self, container: Container) -> Callable[[], None]:
        """Serve ``container``; the result ends it."""
        ...


class Task:
    """A container and its work loop. ``run`` is its whole life; the rest are events.

    All methods belong to one event loop; none but ``run`` and the waiting RPCs takes time.
    """

    def __init__(
        self,
        start: StartTask,
        link: Reporter,
        preparer: Preparer,
        relay: Relay | None,
        clock: Clock,
        tunnels: Tunnels | None = None,
        templates: Templates | None = None,
    ) -> None:
        self._start = start
        self._link = link
        self._preparer = preparer
        self._relay = relay
        self._tunnels = tunnels
        self._templates = templates
        self._template: Template | None = None
        """The container it will have, until it has it."""
        self._clock = clock
        rules = WorkRules(
            startup_timeout_s=start.startup_timeout_s,
            input_timeout_s=start.input_timeout_s,
            batch_max_size=start.batch_max_size,
            batch_linger_ms=start.batch_linger_ms,
            single_use=start.single_use,
        )
        self._work = WorkLoop(rules, clock)
        self._reports = Reports(start.task_id, link.send, link.send_sure)
        self._pump = LogPump(start.task_id, link, lambda: self._attribution)
        self._attributes = start.max_concurrent <= 1 and start.batch_max_size == 0
        self._attribution = ("", "")
        self._server = GrpcServer(ContainerDispatcher(self, link))
        self._container: Container | None = None
        self._usage = UsageMeter()
        self._volumes = ContainerVolumes([])
        self._preparing: asyncio.Task[Prepared] | None = None
        self._kill_reason = ""
        self._ready_at = 0.0
        self._inputs_wake = asyncio.Event()
        self._cancels_wake = asyncio.Event()
        self._turn = 0
        self._timer: asyncio.TimerHandle | None = None
        self._exited = False
        self._opening: asyncio.Task[None] | None = None
        self._launched = asyncio.Event()
        self._succeeded = False

    # ── for the supervisor ────────────────────────────────────────────────────────────────────

    @property
    def task_id(self) -> str:
        return self._start.task_id

    @property
    def is_over(self) -> bool:
        return self._exited

    @property
    def container(self) -> Container:
        """Raises ``NotFoundError`` before it runs and when it has ended."""
        if self._container is None or self._exited:
            raise NotFoundError(f"the container {self.task_id} is not running")
        return self._container

    @property
    def env(self) -> dict[str, str]:
        """The environment of its command."""
        return environment(self._start)

    @property
    def workdir(self) -> str:
        return self._start.workdir or FUNCTION_WORKDIR

    async def started(self) -> Container:
        """The container, as soon as it runs. Raises ``NotFoundError`` if it has ended."""
        await self._launched.wait()
        return self.container

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Somebody uses it; a function's container is idle by its inputs only."""
        return contextlib.nullcontext()

    def running(self) -> RunningTask:
        """What ``Hello`` says of this task."""
        held = self._work.held()
        gpus = [] if self._exited else list(self._start.gpus)
        return RunningTask(self.task_id, self._work.is_ready, held, self._address, gpus)

    def deliver(self, items: Sequence[InputItem]) -> None:
        """Queue attempts (``DeliverInputs``)."""
        self._apply(self._work.deliver(items))

    def cancel(self, input_ids: Sequence[str], *, gentle: bool = False) -> None:
        """End inputs (``CancelInputs``)."""
        self._apply(self._work.cancel(input_ids, gentle=gentle))

    def recall(self, keys: Sequence[Key]) -> None:
        """Give back those of these attempts that have not started (``RecallInputs``)."""
        self._apply(self._work.recall(keys))

    def forget(self, keys: Sequence[Key]) -> None:
        """Drop attempts the server no longer wants from this task."""
        self._apply(self._work.forget(keys))

    def stop(self, *, graceful: bool, grace_s: float, reason: str = "") -> None:
        """End the task (``StopTask``)."""
        if graceful and not self._start.is_server:
            self._apply(self._work.drain())
        else:
            reason = reason or f"the container did not end within {grace_s:g} s of being stopped"
            self._apply(self._work.stop(grace_s, reason))

    def kill(self, reason: str) -> None:
        """End the task at once; ``reason`` goes into its report."""
        self._kill(reason)

    def usage(self) -> list[UsageSample]:
        """What its container has used so far."""
        return self._usage.until_now()

    def flush(self) -> None:
        """Let no report wait any longer."""
        self._reports.flush()

    def introduce(self) -> None:
        """Say again what a lost connection may have swallowed."""
        if self._ready_at:
            self._link.send(TaskReady(self.task_id, self._ready_at, self._address))
        started = self._work.started()
        if started:
            keys = [attempt.key for attempt in started]
            self._link.send(InputsStarted(self.task_id, keys, started[0].started_at))

    async def run(self) -> None:
        """From nothing to nothing; reports every outcome, raises none but cancellation."""
        try:
            await self._run()
        except asyncio.CancelledError:
            raise
        except START_ERRORS as error:
            self._report_unstarted(self._kill_reason or str(error) or type(error).__name__)
        except Exception as error:
            log.exception("a task failed in the node", task_id=self.task_id)
            self._report_unstarted(f"the node failed to run the container: {error!r}")
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._opening is not None:
                self._opening.cancel()
            if self._templates is not None:
                if self._template is not None:
                    self._templates.discard(self._template)
                self._templates.ended(self.task_id)

    async def _run(self) -> None:
        if self._kill_reason:
            return self._report_unstarted(self._kill_reason)
        self._preparing = asyncio.create_task(self._prepare())
        try:
            prepared = await self._preparing
        except asyncio.CancelledError:
            if not self._kill_reason:
                raise
            return self._report_unstarted(self._kill_reason)
        try:
            await self._serve_and_wait(prepared)
        finally:
            template, self._template = self._template, None
            if template is not None:  # it never went on
                await template.remove()
            await self._preparer.discard(prepared)

    async def _prepare(self) -> Prepared:
        """From a container that waits for a task like this one, or from nothing."""
        if self._templates is None:
            return await self._preparer.prepare(self._start)
        template = self._template = self._templates.take(self._start)
        if template is not None:
            try:
                return await template.hand_over(self._preparer, self._start)
            except (ContainerStartError, OSError) as error:
                # it ended in this moment, or cannot be used: the task does without
                self._template = None
                self._templates.refused(self.task_id, template, str(error))
        if note := self._templates.note(self.task_id):
            self._pump.system(note)
        return await self._preparer.prepare(self._start)

    async def _serve_and_wait(self, prepared: Prepared) -> None:
        listener = await serve_unix(self._server.protocol_factory, prepared.socket_path)
        try:
            if self._kill_reason:
                return self._report_unstarted(self._kill_reason)
            container = await self._launch(prepared)
            try:
                ended = await self._watch(container)
                self._usage.end()
                await prepared.volumes.finish()
                self._report_exit(ended, await self._kept(prepared, container, ended))
            finally:
                self._usage.cancel()
                await container.remove()
        finally:
            listener.close()
            await self._server.stop(0.0)
            self._pump.close()

    async def _launch(self, prepared: Prepared) -> Container:
        skips_hello = self._start.is_server or (
            self._template is not None and self._template.skips_hello
        )
        container = self._take_over() or await self._start_container(prepared)
        self._container = container
        self._launched.set()
        self._volumes = prepared.volumes
        self._volumes.started(container)
        self._usage.begin(container, self._clock)
        self._work.launched()
        if skips_hello:  # the user's part begins here
            self.greeted()
        self._arm()
        if self._kill_reason:
            container.kill()
        return container

    def _take_over(self) -> Container | None:
        template, self._template = self._template, None
        if template is None:
            return None
        stdout, stderr = template.go(self._start)
        self._pump.add(stdout, STDOUT)
        self._pump.add(stderr, STDERR)
        return template.container

    async def _start_container(self, prepared: Prepared) -> Container:
        stdout_read, stdout_write = os.pipe()
        stderr_read, stderr_write = os.pipe()
        self._pump.add(stdout_read, STDOUT)
        self._pump.add(stderr_read, STDERR)
        try:
            spec = prepared.spec(self._start, stdout_write, stderr_write)
            return await prepared.runtime.start(spec)
        finally:
            os.close(stdout_write)
            os.close(stderr_write)

    async def _kept(self, prepared: Prepared, container: Container, ended: Exit) -> str:
        """The layer that the container leaves; empty if it is to leave none, or failed."""
        if not self._start.commit_layer or not self._succeeded or ended.returncode != 0:
            return ""
        await container.remove(keep_upper=True)
        try:
            return await self._preparer.keep(self._start, prepared, self._clock.now())
        except OSError:
            log.exception("a container's files could not be kept", task_id=self.task_id)
            return ""

    async def _watch(self, container: Container) -> Exit:
        detach = await self._relay.attach(container) if self._relay is not None else None
        try:
            return await container.wait()
        finally:
            if detach is not None:
                detach()

    # ── reports ───────────────────────────────────────────────────────────────────────────────

    def _report_exit(self, ended: Exit, layer: str) -> None:
        self._pump.close()
        self._exited = True
        self._launched.set()
        end = self._work.end()
        self._reports.finished(end.outputs)
        self._reports.flush()
        self._link.send_sure(
            TaskExited(
                seq=0,
                task_id=self.task_id,
                returncode=ended.returncode,
                oom_killed=ended.oom_killed,
                was_ready=self._work.is_ready,
                unfinished=end.unfinished,
                unstarted=end.unstarted,
                reason=self._kill_reason,
                stderr_tail=self._pump.stderr_tail,
                layer=layer,
                usage=self._usage.samples(),
            )
        )

    def _report_unstarted(self, reason: str) -> None:
        if self._exited:
            return
        self._exited = True
        self._launched.set()
        self._pump.close()
        end = self._work.end()
        self._reports.finished(end.outputs)
        self._reports.flush()
        log.warning("a container did not start", task_id=self.task_id, reason=reason)
        self._link.send_sure(
            TaskExited(
                seq=0,
                task_id=self.task_id,
                returncode=-1,
                oom_killed=False,
                was_ready=self._work.is_ready,
                unfinished=end.unfinished,
                unstarted=end.unstarted,
                reason=reason,
                stderr_tail=self._pump.stderr_tail,
                start_failed=True,
            )
        )

    # ── carrying out what the work loop decides ───────────────────────────────────────────────

    def _apply(self, effects: Effects) -> None:
        if self._exited:
            self._refuse(effects)
            return
        self._reports.finished(effects.outputs, patient=effects.patient)
        self._return(effects.returned)
        if effects.cancel_event:
            self._cancels_wake.set()
        if effects.wake:
            self._inputs_wake.set()
        if effects.interrupt:
            self._interrupt()
        if effects.kill:
            self._kill(effects.kill)
        self._arm()

    def _refuse(self, effects: Effects) -> None:
        """Events that come after the end: nothing may be left behind unanswered."""
        end = self._work.end()
        self._reports.finished(effects.outputs + end.outputs)
        self._return(effects.returned + end.unfinished + end.unstarted)

    def _return(self, keys: Sequence[Key]) -> None:
        if keys:
            self._link.send(InputsReturned(self.task_id, list(keys)))

    def _interrupt(self) -> None:
        if self._container is not None:
            number = signal.SIGTERM if self._start.is_server else signal.SIGINT
            self._container.signal(number)

    def _kill(self, reason: str) -> None:
        self._kill_reason = self._kill_reason or reason
        if self._container is not None:
            self._container.kill()
        elif self._preparing is not None:
            self._preparing.cancel()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._work.next_deadline()
        if deadline is not None and not self._exited:
            delay = max(0.0, deadline - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._apply(self._work.due())

    # ── ContainerPort: what the container asks ────────────────────────────────────────────────

    @property
    def untrusted(self) -> bool:
        return self._start.untrusted

    async def get_inputs(self, concurrency: int) -> Grant:
        """Wait for work. A newer call of the same container ends this one."""
        self._report_ready()
        self._turn += 1
        turn = self._turn
        self._inputs_wake.set()
        while True:
            if turn != self._turn:
                raise StatusError(UNAVAILABLE, "another FunctionGetInputs took over")
            answer = self._work.take(concurrency)
            if isinstance(answer, Grant):
                self._granted(answer)
                return answer
            self._inputs_wake.clear()
            if answer is None:
                await self._inputs_wake.wait()
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(answer):
                        await self._inputs_wake.wait()

    def _granted(self, grant: Grant) -> None:
        if self._attributes and grant.items:
            self._pump.catch_up()
            self._attribution = (grant.items[0].input_id, grant.items[0].call_id)
        if grant.items and not grant.repeated:
            keys = [(item.input_id, item.retry_count) for item in grant.items]
            patient = all(item.patient for item in grant.items)
            self._reports.started(keys, self._clock.now(), patient=patient)
        self._return(grant.returned)
        self._arm()

    async def heartbeat(self, hold_s: float) -> list[str]:
        """Wait for inputs to cancel; says the same ids again until those inputs ended."""
        until = self._clock.monotonic() + hold_s
        while not (ids := self._work.cancelled_ids()):
            self._cancels_wake.clear()
            left = min(until, self._work.next_cancel_at() or until) - self._clock.monotonic()
            if left <= 0 and until <= self._clock.monotonic():
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(left, 0.0)):
                    await self._cancels_wake.wait()
        return ids

    def put_outputs(self, items: list[OutputItem]) -> None:
        """Report outputs, after what the container printed before them."""
        if self._link.is_full:
            raise StatusError(RESOURCE_EXHAUSTED, "the node holds too many outputs; try again")
        self._pump.catch_up()
        self._succeeded = any(item.result.status == STATUS_SUCCESS for item in items)
        effects = self._work.finish(items)
        self._attribution = ("", "")
        self._apply(effects)

    def concurrency(self, target: int, maximum: int) -> int:
        return self._work.concurrency(target, maximum)

    def init_failed(self, result: Result) -> None:
        """``TaskResult``: the container failed to start, or one of its exit handlers failed."""
        self._pump.catch_up()
        self._work.init_failed()
        self._link.send_kept(TaskInitFailed(self.task_id, result))
        self._arm()

    def greeted(self) -> None:
        """``ContainerHello``."""
        self._work.greeted()
        if self._templates is not None:
            self._templates.greeted(self.task_id)
        self._arm()

    def checkpoint(self) -> None:
        """``ContainerCheckpoint``: only before there is a task (``templates/checkpoint.py``)."""
        raise StatusError(UNIMPLEMENTED, "memory snapshots of running tasks are not taken")

    def stop_fetching(self) -> None:
        """``ContainerStop`` for itself."""
        self._link.send_kept(TaskStopping(self.task_id))
        self._apply(self._work.drain())

    def server_ready(self) -> None:
        """``ContainerServerLifecycleReady``: now its port has to open."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._wait_for_port())

    async def _wait_for_port(self) -> None:
        """Report ready when the server's port takes connections; the startup timeout goes on."""
        pause = PORT_PAUSE_S[0]
        while not self._exited:
            try:
                _, writer = await asyncio.open_connection(self._address, self._start.server_port)
            except OSError:
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, PORT_PAUSE_S[1])
            else:
                writer.close()
                self._report_ready()
                return

    @property
    def _address(self) -> str:
        return self._container.address if self._container is not None else ""

    def has_volume(self, volume_id: str) -> bool:
        return self._volumes.has(volume_id)

    async def commit_volume(self, volume_id: str) -> None:
        """``VolumeCommit`` for a mounted volume."""
        await self._volumes.commit(volume_id)

    async def reload_volume(self, volume_id: str) -> None:
        """``VolumeReload`` for a mounted volume."""
        await self._volumes.reload(volume_id)

    async def open_tunnels(self, ports: Sequence[TunnelPort], key: str) -> tuple[str, list[int]]:
        """``TunnelStart``."""
        if self._tunnels is None:
            raise ConflictError("this node has no tunnels")
        numbers = await self._tunnels.forward(self.task_id, self, ports, key)
        if self._start.is_server and any(port.number == self._start.server_port for port in ports):
            self.server_ready()  # all that servers of clients before 1.6.1 say of it
        return self._tunnels.host, numbers

    def close_tunnel(self, number: int) -> bool:
        """``TunnelStop``."""
        return self._tunnels is not None and self._tunnels.close(self.task_id, number)

    def owns_call(self, call_id: str) -> bool:
        return any(attempt.item.call_id == call_id for attempt in self._work.started())

    def _report_ready(self) -> None:
        if self._work.ready():
            if self._templates is not None:
                self._templates.ready(self.task_id)
            self._ready_at = self._clock.now()
            self._link.send(TaskReady(self.task_id, self._ready_at, self._address))
            self._arm()
