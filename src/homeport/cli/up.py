"""Starting and stopping the platform of one home: ``up``, ``up --detach``, ``down``."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from homeport import __version__
from homeport.cli import instance
from homeport.cli.supervisor import (
    ChildFailedError,
    ChildSpec,
    Plan,
    Supervisor,
    children,
    die_with_parent,
    sweeping,
)
from homeport.kernel.errors import HomeportError, InvalidError, UnavailableError
from homeport.settings import Settings
from homeport.storage.standing import FREE, LEFT, NEWS

LOG_BYTES_MAX = 32 * 1024 * 1024
"""A log larger than this is set aside as ``.1`` (one is kept) when ``up --detach`` starts."""
_START_S = 240.0
"""How long another ``up`` may be starting before we stop waiting for it."""
_FORMER_SERVER_S = 15.0
_TAIL_LINES = 8
_BACKLOG = 1024
"""Connections that wait while the server is started (again)."""


class _Started(msgspec.Struct):
    """What a detached ``up`` tells the command that started it, once, through a pipe."""

    ok: bool
    message: str


def run_up(settings: Settings, *, detached_fd: int | None = None) -> None:
    """Run server and node until a stop signal, in this process.

    ``detached_fd``: write the outcome of the start there (see ``start_detached``) and keep the
    children's output in ``<home>/logs``. Raises ``HomeportError`` with a sentence.
    """
    if sys.platform != "linux":
        raise InvalidError("homeport up needs Linux: run it in a Linux machine or virtual machine.")
    instance.open_home(settings)
    outcome = _Outcome(settings, detached_fd)
    with instance.UpLock(settings) as lock:
        _outlive_former_server(settings)
        failure: ChildFailedError | None = None
        while True:
            if settings.standby and not _stand_by(settings, lock, outcome) and failure is not None:
                raise failure  # not because another server had taken over
            try:
                _supervise(settings, lock, outcome, in_files=detached_fd is not None)
            except ChildFailedError as error:
                if not settings.standby:
                    raise
                _log(error.message)
                failure = error
            else:
                return


def _supervise(
    settings: Settings, lock: instance.UpLock, outcome: _Outcome, *, in_files: bool
) -> None:
    """Run both until a stop signal. Raises ``ChildFailedError`` with their last words."""
    with _listen(settings.host, settings.port) as listening:
        url = instance.local_url(settings.host, listening.getsockname()[1])
        logs = settings.log_dir if in_files else None
        server, node = children(settings.home, settings.host, listening, url, logs=logs)
        plan = Plan(url=url, server=server, node=node, folder=settings.home)
        marks = {spec.name: _size(spec.log) for spec in (server, node)}
        try:
            Supervisor(plan, lock, _log, lambda answer: outcome.ready(url, answer)).run()
        except ChildFailedError as error:
            error.message += _last_words((server, node), marks)
            raise


def _stand_by(settings: Settings, lock: instance.UpLock, outcome: _Outcome) -> bool:
    """Wait until no other server has the database; whether one had it.

    Raises ``HomeportError`` with what keeps this one from standing by.
    """
    command = (sys.executable, "-P", "-m", "homeport.storage.standby", str(settings.home))
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=die_with_parent
    ) as process:
        assert process.stderr is not None
        line = ""
        stands_by = False
        for raw in process.stderr:
            line = raw.decode(errors="replace").rstrip()
            if not line.startswith(NEWS):
                continue
            if not stands_by:  # no node will start here for now, to undo what a killed one left
                subprocess.run(sweeping(settings.home), stdin=subprocess.DEVNULL, check=False)
                lock.record(instance.UpRecord(pid=os.getpid(), url="", standby=True))
            stands_by = True
            _log(line.removeprefix(NEWS))
            outcome.stands_by(line)
    if process.returncode not in (FREE, LEFT):
        raise UnavailableError(line or f"standing by ended with {process.returncode}")
    return process.returncode == LEFT


class _Outcome:
    """Tells whoever waits, once, that the start succeeded."""

    def __init__(self, settings: Settings, fd: int | None) -> None:
        self._settings = settings
        self._fd = fd

    def ready(self, url: str, answer: Mapping[str, Any]) -> None:
        message = (
            f"Homeport {answer.get('version', __version__)} is ready at {url} "
            f"(home {instance.shown(self._settings.home)}). Try: homeport run examples/hello.py"
        )
        print(message, flush=True)
        self._report(message)

    def stands_by(self, line: str) -> None:
        self._report(line)

    def _report(self, message: str) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            report(fd, ok=True, message=message)


def report(fd: int, *, ok: bool, message: str) -> None:
    """Tell ``start_detached`` how it went and close the pipe."""
    with contextlib.suppress(OSError):  # the one who waited is gone: nobody to tell
        os.write(fd, msgspec.json.encode(_Started(ok=ok, message=message)))
        os.close(fd)


def start_detached(settings: Settings) -> str:
    """Start ``homeport up`` in the background and wait until it is ready.

    Returns the sentence it printed. Raises ``HomeportError`` with the reason it did not start.
    """
    instance.open_home(settings)
    for name in ("up", "server", "node"):
        _set_aside(settings.log_dir / f"{name}.log")
    read_fd, write_fd = os.pipe()
    argv = (
        *(sys.executable, "-P", "-m", "homeport.cli.main", "up", "--detached-fd", str(write_fd)),
        *("--home", str(settings.home)),
        *("--host", settings.host, "--port", str(settings.port)),
    )
    with (settings.log_dir / "up.log").open("ab") as log:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=settings.home,
            start_new_session=True,
            pass_fds=(write_fd,),
        )
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        try:
            answer = pipe.read()
        except KeyboardInterrupt:
            process.terminate()
            raise
    if not answer:
        raise UnavailableError(
            f"Homeport ended while starting; its log is {settings.log_dir / 'up.log'}"
        )
    started = msgspec.json.decode(answer, type=_Started)
    if not started.ok:
        process.wait()
        raise HomeportError(started.message)
    return started.message


def ensure_running(settings: Settings, say: Callable[[str], None]) -> str:
    """The URL of the Homeport of this home, started in the background if nothing answers."""
    deadline = time.monotonic() + _START_S
    while True:
        up = instance.find_up(settings)
        if up is not None and up.ready:
            return up.url
        if up is not None and up.standby:
            raise UnavailableError(
                "Homeport stands by here: another server has the database. Use that one's address"
            )
        if up is None:
            server = instance.find_server(settings)
            if server is not None and instance.health(server.url) is not None:
                return server.url
            say(f"Starting Homeport in the background (home {instance.shown(settings.home)}) …")
            try:
                say(start_detached(settings))
            except HomeportError:
                if instance.find_up(settings) is None:
                    raise  # it failed on its own account, not because another one was first
        elif time.monotonic() > deadline:
            raise UnavailableError(
                f"Homeport (pid {up.pid}) is still not ready; see {settings.log_dir}"
            )
        else:
            time.sleep(0.1)


def stop(settings: Settings, grace_s: float, say: Callable[[str], None]) -> bool:
    """Stop the ``homeport up`` of this home, by force after ``grace_s``; whether one ran."""
    up = instance.find_up(settings)
    if up is None:
        server = instance.find_server(settings)
        if server is not None and instance.health(server.url) is not None:
            raise InvalidError(
                f"The server at {server.url} (pid {server.pid}) was not started by homeport up; "
                "stop it where it was started."
            )
        return False
    if not up.pid:
        raise UnavailableError("Homeport is just starting or stopping here; try again.")
    try:
        handle = os.pidfd_open(up.pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        if not _ended(handle, grace_s):
            say(f"still running after {grace_s:.0f} s: killing it")
            _kill(handle, instance.find_up(settings) or up)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise InvalidError(
            f"Homeport (pid {up.pid}) belongs to another user; stop it as that user."
        ) from None
    finally:
        os.close(handle)
    return True


def _kill(handle: int, up: instance.UpRecord) -> None:
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    _ended(handle, 5.0)
    for pid in (up.node_pid, up.server_pid):
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def _ended(handle: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _outlive_former_server(settings: Settings) -> None:
    """Wait for the server of an ``up`` that was killed: it is stopping, and has port and home.

    Raises ``InvalidError`` for one that stays, as it was not ours.
    """
    deadline = time.monotonic() + _FORMER_SERVER_S
    while (server := instance.find_server(settings)) is not None:
        if time.monotonic() > deadline:
            raise InvalidError(
                f"A server that homeport up did not start (pid {server.pid}, {server.url}) "
                "uses this home; stop it first."
            )
        time.sleep(0.1)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens on ``port`` (0: a free one). Raises ``InvalidError`` if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise InvalidError(_bind_problem(host, port, error)) from None
    return listening


def _bind_problem(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        what = "another Homeport" if instance.health(instance.local_url(host, port)) else ""
        return (
            f"Port {port} on {host} is in use by {what or 'another program'}. "
            "Choose another with --port or HOMEPORT_PORT (0 = any free one)."
        )
    return f"Cannot listen on {host} port {port}: {error.strerror or error}."


def _log(line: str) -> None:
    print(f"homeport: {line}", file=sys.stderr, flush=True)


def _last_words(specs: tuple[ChildSpec, ...], marks: Mapping[str, int]) -> str:
    """The last lines a failed start left in the logs, for the one who cannot see them scroll by."""
    words: list[str] = []
    for spec in specs:
        if spec.log is None or not spec.log.exists():
            continue
        with spec.log.open("rb") as file:
            file.seek(max(marks[spec.name], _size(spec.log) - 8192))
            lines = file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        if lines:
            words.append("\n".join((f"\n{spec.log}:", *(f"  {line}" for line in lines))))
    return "".join(words)


def _size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.exists() else 0


def _set_aside(log: Path) -> None:
    if _size(log) > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.1"))
