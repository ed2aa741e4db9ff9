"""``homeport up``: the server and the node as two child processes, watched from one thread.

The signals that matter are blocked and waited for, together with the end of a child, in one
``sigtimedwait``: no handler runs in between, nothing is polled once everything is up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homeport.cli.instance import UpLock, UpRecord, health
from homeport.kernel.errors import HomeportError

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WATCHED = {*_STOP, signal.SIGCHLD}
_START_POLL_S = 0.05
"""While starting only: how often the health answer is asked for."""
_IMPATIENT_S = 1.0
"""A stop signal counts as a second one after that; terminal and ``make`` may both send the first."""
_PR_SET_PDEATHSIG = 1
_PYTHON = (sys.executable, "-P", "-m")
_libc = ctypes.CDLL(None, use_errno=True)


class ChildFailedError(HomeportError):
    """A child did not start, or crashed too often."""


class _Interrupted(Exception):  # noqa: N818 - not an error
    """A stop signal arrived while starting."""


@dataclass(slots=True)
class RestartBudget:
    """How often a child may be restarted: ``limit`` times within ``window_s`` seconds."""

    limit: int = 5
    window_s: float = 60.0
    first_delay_s: float = 0.5
    _times: deque[float] = field(default_factory=deque[float])

    def take(self, now: float) -> float | None:
        """Seconds to wait before the restart (doubling within the window); ``None`` = give up."""
        while self._times and now - self._times[0] > self.window_s:
            self._times.popleft()
        if len(self._times) >= self.limit:
            return None
        delay = self.first_delay_s * 2 ** len(self._times)
        self._times.append(now)
        return delay

    @property
    def used(self) -> int:
        return len(self._times)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A program to keep running. ``log`` receives its output; ``None`` leaves it on the terminal.

    It gets SIGTERM to stop and ``stop_grace_s`` to do so before its process group is killed.
    ``fds`` are open in it under the same numbers. ``sweep`` undoes what it leaves behind when it
    is not there to do so itself at the end: it crashed, or had to be killed.
    """

    name: str
    argv: Sequence[str]
    stop_grace_s: float
    log: Path | None = None
    budget: RestartBudget = field(default_factory=RestartBudget)
    fds: tuple[int, ...] = ()
    sweep: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run and how to know that it runs. Times in seconds."""

    url: str
    server: ChildSpec
    node: ChildSpec
    folder: Path
    """Working directory of the children."""
    server_start_s: float = 60.0
    node_start_s: float = 120.0


class _Child:
    """One child process in a process group of its own, out of reach of the terminal's Ctrl-C."""

    def __init__(self, spec: ChildSpec, folder: Path) -> None:
        self.spec = spec
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.restart_at: float | None = None
        self.is_swept = True

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def name(self) -> str:
        return self.spec.name

    def start(self) -> None:
        self.restart_at = None
        self.is_swept = False
        self._process = self._popen(self.spec.argv, self.spec.fds)

    def _popen(self, argv: Sequence[str], fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as stack:
            output = None
            if self.spec.log is not None:
                self.spec.log.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(self.spec.log.open("ab"))
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                start_new_session=True,
                pass_fds=fds,
                preexec_fn=die_with_parent,
            )

    def ended(self) -> int | None:
        """Its exit code if it has ended since ``start``."""
        return None if self._process is None else self._process.poll()

    def forget(self) -> None:
        self._process = None

    def terminate(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End its whole process group, whatever state it is in."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def sweep(self) -> bool:
        """Have undone what it left behind; whether that succeeded."""
        if self.is_swept or not self.spec.sweep:
            return True
        with self._popen(self.spec.sweep) as process:
            try:
                self.is_swept = process.wait(self.spec.stop_grace_s) == 0
            except subprocess.TimeoutExpired:
                process.kill()
        return self.is_swept


class Supervisor:
    """Starts the children in order, restarts the one that crashes, stops them in reverse order.

    ``say`` prints a line for the log; ``ready`` is called once, when the server answers and the
    node is connected, with the health answer.
    """

    def __init__(
        self,
        plan: Plan,
        lock: UpLock,
        say: Callable[[str], None],
        ready: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self._plan = plan
        self._lock = lock
        self._say = say
        self._ready = ready
        self._server = _Child(plan.server, plan.folder)
        self._node = _Child(plan.node, plan.folder)
        self._is_ready = False
        self._stop_asked_at = 0.0

    def run(self) -> None:
        """Until a stop signal. Raises ``ChildFailedError``; the children are ended either way."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        try:
            self._record()
            self._start()
            self._watch()
        except _Interrupted:
            pass
        finally:
            self._stop(self._node)
            self._stop(self._server)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _start(self) -> None:
        plan = self._plan
        self._spawn(self._server)
        self._until(self._server, plan.server_start_s, lambda: health(plan.url))
        self._spawn(self._node)
        answer = self._until(self._node, plan.node_start_s, self._connected)
        self._is_ready = True
        self._record()
        self._ready(answer)

    def _connected(self) -> Mapping[str, Any] | None:
        answer = health(self._plan.url)
        return answer if answer and answer.get("nodes") else None

    def _until(
        self, child: _Child, timeout_s: float, condition: Callable[[], Mapping[str, Any] | None]
    ) -> Mapping[str, Any]:
        """Wait for ``condition``; a child that ends before it holds is not tried again."""
        deadline = time.monotonic() + timeout_s
        while True:
            answer = condition()
            for one in (self._server, self._node):
                code = one.ended()
                if code is not None:
                    one.forget()
                    raise ChildFailedError(f"The {one.name} ended while starting ({_how(code)}).")
            if answer is not None:
                return answer
            if time.monotonic() > deadline:
                raise ChildFailedError(
                    f"The {child.name} was started but is not ready after {timeout_s:.0f} s."
                )
            self._wait(_START_POLL_S)

    def _watch(self) -> None:
        while True:
            now = time.monotonic()
            due = [c.restart_at for c in (self._server, self._node) if c.restart_at is not None]
            self._wait(max(0.0, min(due) - now) if due else None)
            for child in (self._server, self._node):
                if child.restart_at is not None and child.restart_at <= time.monotonic():
                    self._spawn(child)
                    self._record()
                code = child.ended()
                if code is not None:
                    self._crashed(child, code)

    def _crashed(self, child: _Child, code: int) -> None:
        child.forget()
        now = time.monotonic()
        budget = child.spec.budget
        delay = budget.take(now)
        if delay is None:
            raise ChildFailedError(
                f"The {child.name} ended {budget.limit + 1} times within {budget.window_s:.0f} s "
                f"(last: {_how(code)}); giving up."
            )
        self._say(
            f"the {child.name} ended ({_how(code)}); starting it again in {delay:g} s "
            f"({budget.used} of {budget.limit} within {budget.window_s:.0f} s)"
        )
        child.restart_at = now + delay

    def _wait(self, timeout_s: float | None) -> None:
        """Until a child changes state or the time has passed. Raises on a stop signal."""
        if timeout_s is None:
            number = signal.sigwait(_WATCHED)
        else:
            info = signal.sigtimedwait(_WATCHED, timeout_s)
            number = info.si_signo if info else 0
        if number in _STOP:
            self._stop_asked_at = time.monotonic()
            self._say(f"{signal.Signals(number).name}: stopping")
            raise _Interrupted

    def _stop(self, child: _Child) -> None:
        """Ask, wait, then kill. A second stop signal kills at once."""
        child.restart_at = None
        child.terminate()
        deadline = time.monotonic() + child.spec.stop_grace_s
        while child.ended() is None and child.pid:
            info = signal.sigtimedwait(_WATCHED, max(0.0, deadline - time.monotonic()))
            if info is None:
                self._say(
                    f"the {child.name} did not stop within {child.spec.stop_grace_s:.0f} s: killed"
                )
            elif info.si_signo in _STOP and self._is_second_signal():
                self._say(f"second {signal.Signals(info.si_signo).name}: {child.name} killed")
            else:
                continue
            child.kill()
        code = child.ended()
        if code not in (None, 0, -signal.SIGTERM, -signal.SIGKILL):
            self._say(f"the {child.name} ended with {_how(code or 0)} when asked to stop")
        child.is_swept = child.is_swept or code == 0
        child.forget()
        if not child.sweep():
            self._say(f"what the {child.name} left on the machine could not all be removed")

    def _is_second_signal(self) -> bool:
        return time.monotonic() - self._stop_asked_at > _IMPATIENT_S

    def _spawn(self, child: _Child) -> None:
        child.start()
        self._record()

    def _record(self) -> None:
        self._lock.record(
            UpRecord(
                pid=os.getpid(),
                url=self._plan.url,
                ready=self._is_ready,
                server_pid=self._server.pid,
                node_pid=self._node.pid,
            )
        )


def children(
    home: Path, host: str, listening: socket.socket, url: str, *, logs: Path | None
) -> tuple[ChildSpec, ChildSpec]:
    """The two programs of one installation. ``logs``: folder for their output, or the terminal.

    The server gets ``listening``, which stays open here: while it is started again connections
    wait in the socket's queue, where clients of short patience would give up on a refusal.
    """
    port, fd = listening.getsockname()[1], listening.fileno()
    server = ChildSpec(
        name="server",
        argv=(
            *(*_PYTHON, "homeport.main", "serve"),
            *("--home", str(home), "--host", host, "--port", str(port), "--fd", str(fd)),
        ),
        stop_grace_s=15.0,
        fds=(fd,),
        log=logs / "server.log" if logs else None,
    )
    node_argv = (*_PYTHON, "homeport.node.main", "--home", str(home), "--server", url)
    node = ChildSpec(
        name="node",
        argv=node_argv,
        sweep=sweeping(home),
        stop_grace_s=45.0,
        log=logs / "node.log" if logs else None,
    )
    return server, node


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def die_with_parent() -> None:
    """In the child, before exec: unblock signals; SIGTERM should ``homeport up`` be killed."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)


def sweeping(home: Path) -> tuple[str, ...]:
    """The command that undoes what a node of ``home`` left on the machine when it was killed."""
    return (*_PYTHON, "homeport.node.main", "--home", str(home), "--sweep")
