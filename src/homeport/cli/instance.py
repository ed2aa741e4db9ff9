"""Which Homeport runs in a home: the lock of ``homeport up``, its record, and the health answer.

``<home>/run/up.lock`` is held (``flock``) by a running ``homeport up`` and falls with its process;
``up.json`` beside it is only true while the lock is held. ``server.json`` is the server's own.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import msgspec

from homeport.kernel.decoding import UNREADABLE
from homeport.kernel.errors import ConflictError, InvalidError
from homeport.settings import Settings

_T = TypeVar("_T")
_ACQUIRE_S = 1.0
"""A reader holds the lock for microseconds to see whether it is free: worth a second try."""


class UpRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a running ``homeport up`` says about itself. ``url`` is empty until it is known."""

    pid: int
    url: str
    ready: bool = False
    standby: bool = False
    """Another server works on its database: nothing runs here but the wait for that one's end."""
    server_pid: int = 0
    node_pid: int = 0


class ServerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``run/server.json``: written by the server when it listens."""

    pid: int
    port: int
    url: str


class AlreadyRunningError(ConflictError):
    """Another ``homeport up`` holds this home."""


class UpLock:
    """The right to run ``homeport up`` in a home, held until ``close`` or the process's end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._fd = -1

    def __enter__(self) -> UpLock:
        """Take it. Raises ``AlreadyRunningError`` naming the pid and URL of the one that has it."""
        path = _lock_path(self._settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _ACQUIRE_S
        while not _try_lock(self._fd, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                os.close(self._fd)
                raise AlreadyRunningError(self._taken())
            time.sleep(0.02)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _record_path(self._settings).unlink(missing_ok=True)
        os.close(self._fd)

    def record(self, value: UpRecord) -> None:
        """Say what is running; readers see the old record or the new one, whole."""
        path = _record_path(self._settings)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(value))
        fresh.replace(path)

    def _taken(self) -> str:
        home = self._settings.home
        up = find_up(self._settings)
        if up is None or not up.pid:
            return f"Homeport is starting or stopping in {home} already. Try again in a moment."
        where = f" at {up.url}" if up.url else ""
        return (
            f"Homeport runs in {home} already: pid {up.pid}{where}. "
            f"Stop it with: homeport down --home {home}"
        )


def open_home(settings: Settings) -> None:
    """Make the home if it is missing. Raises ``InvalidError`` when it cannot hold state."""
    home = settings.home
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (settings.run_dir, settings.log_dir):
            folder.mkdir(exist_ok=True)
        probe = settings.run_dir / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except FileExistsError as error:
        raise InvalidError(
            f"{error.filename} is not a folder, so {home} cannot be a home. "
            "Choose another with --home or HOMEPORT_HOME."
        ) from None
    except OSError as error:
        raise InvalidError(
            f"The home {home} cannot be used: {error.strerror} ({error.filename}). "
            "Choose another with --home or HOMEPORT_HOME."
        ) from None


def find_up(settings: Settings) -> UpRecord | None:
    """The ``homeport up`` that runs in this home; ``None`` if none does.

    ``pid`` is 0 while it has taken the home but not yet said who it is.
    """
    try:
        fd = os.open(_lock_path(settings), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if _try_lock(fd, fcntl.LOCK_SH):
            return None
    finally:
        os.close(fd)
    record = _read(_record_path(settings), UpRecord)
    if record is None or not _is_alive(record.pid):
        return UpRecord(pid=0, url="")
    return record


def find_server(settings: Settings) -> ServerRecord | None:
    """The server listening for this home, however it was started; ``None`` if none is alive.

    A server that was killed leaves its record behind, and its pid may be another program's by now.
    """
    record = _read(settings.run_dir / "server.json", ServerRecord)
    if record is None or b"homeport.main" not in _command_line(record.pid):
        return None
    return record


def health(url: str, timeout_s: float = 1.0) -> dict[str, Any] | None:
    """What ``GET /healthz`` says; ``None`` if nothing (healthy) answers there."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(
        parts.hostname or "127.0.0.1", parts.port or 80, timeout=timeout_s
    )
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        body: Any = json.loads(answer.read(1 << 20)) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    if not isinstance(body, dict) or cast(Any, body).get("status") != "ok":
        return None
    return cast("dict[str, Any]", body)


def local_url(host: str, port: int) -> str:
    """The URL under which programs of this machine reach a server bound to ``host``."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def shown(path: Path) -> str:
    """``path`` with the user's home folder as ``~``, for messages."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)


def _lock_path(settings: Settings) -> Path:
    return settings.run_dir / "up.lock"


def _record_path(settings: Settings) -> Path:
    return settings.run_dir / "up.json"


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, *UNREADABLE):
        return None


def _command_line(pid: int) -> bytes:
    """The arguments of a running process; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid > 0
