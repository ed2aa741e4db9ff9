"""A container's files, for the node: run as a program of its own, with nothing but Python itself.

``python -I -S files_worker.py FD``: a template that has everything imported. For each message on
``FD`` it forks a worker that goes into one container, gives up every right that the container's
user does not have over files, and answers requests on a socket of its own until that is closed.

A worker sees a container's mounts and is bound by its user, its limits and a filter of system
calls. It is not in the container's PID namespace: no program in there can find it. It loads no code
after it has gone in, since any file that it sees there is the container's.

Requests are packets: JSON ``{"id", "command"}`` with standard input, output and error as
descriptors; the answer is ``{"id", "code"}``. What a command says when it fails is JSON on its
standard error (``error_kind``, ``message``, ``errno``).
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import io
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import threading
import time
from typing import Any

MESSAGE_MAX = 256 * 1024
READ_MAX = 5 * 1024**3
"""Larger files are not read in one go."""
CHUNK = 1024 * 1024
HANDLES_MAX = 256
WATCHES_MAX = 8192
_NAMES_MAX = 1024 * 1024

_CAPBSET_DROP, _SET_DUMPABLE, _SET_SECCOMP, _NO_NEW_PRIVS = 24, 4, 22, 38
_CAP_VERSION = 0x20080522
_FILE_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4  # chown, dac_override, fowner, fsetid

_libc: Any = ctypes.CDLL(None, use_errno=True)


class CommandError(Exception):
    """A command's failure in the words of its protocol."""

    def __init__(self, kind: str, message: str, number: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        self.number = number


class Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("count", ctypes.c_ushort), ("rules", ctypes.c_char_p))


# --- the template -----------------------------------------------------------------------------


def main() -> None:
    """Serve forks until the node closes the socket."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=int(sys.argv[1]))
    while True:
        text, fds = receive(control)
        if not text:
            return
        with contextlib.suppress(OSError):
            if os.fork() == 0:
                code = 1
                try:
                    control.close()
                    become_worker(json.loads(text), fds)
                    code = 0
                finally:
                    os._exit(code)
        for fd in fds:
            os.close(fd)


def receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    """One packet and the descriptors that came with it; empty at the end."""
    room = socket.CMSG_SPACE(64 * 4)
    text, ancillary, _, _ = channel.recvmsg(MESSAGE_MAX, room, socket.MSG_CMSG_CLOEXEC)
    fds: array.array[int] = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return text, list(fds)


def become_worker(place: dict[str, Any], fds: list[int]) -> None:
    """Go into a container for good and serve its files."""
    channel, pidfd, rules, *groups = fds
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    program = read_all(rules)
    for group in groups:
        os.write(group, b"0")
        os.close(group)
    root = -1
    if place["root"]:
        root = os.open(place["root"], os.O_PATH | os.O_DIRECTORY)
    check(_libc.setns(pidfd, place["namespaces"]))
    os.close(pidfd)
    if root >= 0:
        os.fchdir(root)
        os.chroot(".")
        os.close(root)
    os.close(rules)
    os.chdir("/")
    os.umask(0o022)
    forbid_imports()
    give_up_rights(place, program)
    with socket.socket(fileno=channel) as requests:
        serve(requests)


def forbid_imports() -> None:
    """Every file is the container's from here on."""
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()


def give_up_rights(place: dict[str, Any], program: bytes) -> None:
    """Only what the container's user may do with files."""
    allowed = place["capabilities"] & _FILE_CAPABILITIES
    for capability in range(64):
        if not allowed >> capability & 1:
            _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups(place["groups"])
    os.setresgid(place["gid"], place["gid"], place["gid"])
    os.setresuid(place["uid"], place["uid"], place["uid"])
    if place["uid"] == 0:
        header = struct.pack("II", _CAP_VERSION, 0)
        sets = struct.pack("6I", allowed, allowed, 0, 0, 0, 0)
        check(_libc.capset(header, sets))
    check(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    check(_libc.prctl(_SET_DUMPABLE, 0, 0, 0, 0))
    filter_ = Program(len(program) // 8, program)
    check(_libc.prctl(_SET_SECCOMP, 2, ctypes.byref(filter_), 0, 0))


def check(result: int) -> int:
    """``result`` of a call of the C library; raises ``OSError`` for -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def read_all(fd: int) -> bytes:
    """A file of moderate size from its beginning."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


# --- a worker ---------------------------------------------------------------------------------


def serve(requests: socket.socket) -> None:
    """Answer requests, each in a thread, until the other end is closed."""
    lock = threading.Lock()
    files = Files()

    def run(request: dict[str, Any], fds: list[int]) -> None:
        code = 1
        try:
            code = files.run(request["command"], *fds)
        finally:
            for fd in fds:
                os.close(fd)
            with lock, contextlib.suppress(OSError):
                requests.send(json.dumps({"id": request["id"], "code": code}).encode())

    while True:
        text, fds = receive(requests)
        if not text:
            os._exit(0)
        request = json.loads(text)
        try:
            threading.Thread(target=run, args=(request, fds), daemon=True).start()
        except RuntimeError:  # the container is at its limit of processes
            run(request, fds)


class Files:
    """The commands. Each gets its arguments and its three descriptors."""

    def __init__(self) -> None:
        self._handles: dict[str, io.FileIO] = {}
        self._next = 0
        self._lock = threading.Lock()
        self._commands = {
            "ReadFile": self.read_file,
            "WriteFile": self.write_file,
            "ListFiles": self.list_files,
            "Stat": self.stat,
            "MakeDirectory": self.make_directory,
            "Remove": self.remove,
            "Watch": self.watch,
            "HandleOpen": self.handle_open,
            "ListNames": self.list_names,
            "HandleRead": self.handle_read,
            "HandleReadLine": self.handle_read_line,
            "HandleWrite": self.handle_write,
            "HandleReplace": self.handle_replace,
            "HandleSeek": self.handle_seek,
            "HandleFlush": self.handle_flush,
            "HandleClose": self.handle_close,
        }

    def run(self, command: Any, stdin: int, stdout: int, stderr: int) -> int:
        """Run one command; its exit code."""
        try:
            name, arguments = parsed(command)
            work = self._commands.get(name)
            if work is None:
                raise CommandError("NotSupported", f"there is no command {name}", errno.ENOSYS)
            work(arguments, stdin, stdout)
        except BrokenPipeError:
            return 1
        except OSError as error:
            kind, message = _KINDS.get(error.errno, ("Io", ""))
            message = message or f"{os.strerror(error.errno or errno.EIO)} ({error.filename})"
            return report(stderr, kind, message, error.errno or errno.EIO)
        except CommandError as error:
            return report(stderr, error.kind, str(error), error.number)
        except (KeyError, TypeError, ValueError) as error:
            return report(stderr, "InvalidRequest", f"the command is not valid: {error}", 22)
        return 0

    def read_file(self, arguments: dict[str, Any], _stdin: int, stdout: int) -> None:
        """The whole file to ``stdout``."""
        fd = os.open(arguments["path"], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(found.st_mode):
                raise CommandError("Io", f"{arguments['path']} is not a regular file", errno.EINVAL)
            if found.st_size > READ_MAX:
                raise CommandError("FileTooLarge", "file is larger than 5 GiB", errno.EFBIG)
            if copy(fd, stdout, READ_MAX) > READ_MAX:
                raise CommandError("FileTooLarge", "file is larger than 5 GiB", errno.EFBIG)
        finally:
            os.close(fd)

    def write_file(self, arguments: dict[str, Any], stdin: int, _stdout: int) -> None:
        """``stdin`` to its end into the file; parents are made."""
        path: str = arguments["path"]
        if path.endswith("/"):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        make_parents(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o644)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CommandError("Io", f"{path} is not a regular file", errno.EINVAL)
            copy(stdin, fd)
        finally:
            os.close(fd)

    def list_files(self, arguments: dict[str, Any], _stdin: int, stdout: int) -> None:
        """The entries of a directory as a JSON array."""
        path: str = arguments["path"]
        names = Names()
        entries: list[dict[str, Any]] = []
        with os.scandir(path) as found:
            for item in found:
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    entries.append(entry(os.path.join(path, item.name), names))
        entries.sort(key=lambda item: item["name"])
        write(stdout, json.dumps(entries).encode())

    def list_names(self, arguments: dict[str, Any], _stdin: int, stdout: int) -> None:
        """The names in a directory as ``{"paths": […]}``."""
        path: str = arguments["path"]
        write(stdout, json.dumps({"paths": sorted(os.listdir(path))}).encode())

    def stat(self, arguments: dict[str, Any], _stdin: int, stdout: int) -> None:
        """One entry as JSON; symbolic links are not followed."""
        write(stdout, json.dumps(entry(arguments["path"], Names())).encode())

    def make_directory(self, arguments: dict[str, Any], _stdin: int, _stdout: int) -> None:
        """Make a directory, with ``parents`` those above it as well."""
        path: str = arguments["path"]
        if arguments.get("parents"):
            os.makedirs(path, exist_ok=True)
        else:
            os.mkdir(path)

    def remove(self, arguments: dict[str, Any], _stdin: int, _stdout: int) -> None:
        """Remove a file or directory, with ``recursive`` what is in it as well."""
        path: str = arguments["path"]
        found = os.lstat(path)
        if os.path.samestat(found, os.stat("/")):
            raise CommandError("Io", f"{path} is the root directory", errno.EBUSY)
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(path)
        elif arguments.get("recursive"):
            remove_tree(
                os.path.dirname(path.rstrip("/")) or "/", os.path.basename(path.rstrip("/"))
            )
        else:
            os.rmdir(path)

    def watch(self, arguments: dict[str, Any], stdin: int, stdout: int) -> None:
        """A JSON line per event, until ``stdin`` is closed or the time is over."""
        Watch(arguments).run(stdin, stdout)

    # --- open files of older clients ----------------------------------------------------------

    def handle_open(self, arguments: dict[str, Any], _stdin: int, stdout: int) -> None:
        """Open a file; its number goes to ``stdout``. Parents of one to be written are made."""
        mode: str = arguments["mode"].replace("t", "").replace("b", "")
        if mode not in ("r", "w", "x", "a", "r+", "w+", "x+", "a+"):
            raise CommandError("InvalidRequest", f"invalid mode: {arguments['mode']!r}", 22)
        with self._lock:
            if len(self._handles) >= HANDLES_MAX:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), arguments["path"])
            if not mode.startswith("r"):
                make_parents(arguments["path"])
            self._next += 1
            number = str(self._next)
            self._handles[number] = io.FileIO(arguments["path"], mode)
        write(stdout, number.encode())

    def handle_read(self, arguments: dict[str, Any], _stdin: int, stdout: int) -> None:
        """Up to ``n`` bytes, or all there is."""
        file, left = self._handle(arguments), arguments.get("n")
        left = READ_MAX if left is None else left
        while left > 0:
            data = file.read(min(CHUNK, left))
            if not data:
                return
            left -= len(data)
            write(stdout, data)

    def handle_read_line(self, arguments: dict[str, Any], _stdin: int, stdout: int) -> None:
        """Up to the end of the line."""
        file = self._handle(arguments)
        start, line = file.tell(), b""
        while b"\n" not in line:
            data = file.read(8192)
            if not data:
                break
            line += data
        end = line.find(b"\n") + 1 or len(line)
        file.seek(start + end)
        write(stdout, line[:end])

    def handle_write(self, arguments: dict[str, Any], stdin: int, _stdout: int) -> None:
        """``stdin`` to its end at the file's position."""
        copy(stdin, self._handle(arguments).fileno())

    def handle_replace(self, arguments: dict[str, Any], stdin: int, _stdout: int) -> None:
        """``stdin`` in place of the bytes from ``start`` to ``end``."""
        file = self._handle(arguments)
        start, end = arguments.get("start") or 0, arguments.get("end")
        file.seek(0)
        whole = file.readall() or b""
        if not 0 <= start <= len(whole) or (end is not None and not start <= end <= len(whole)):
            raise OSError(errno.EINVAL, "the range is outside of the file", arguments["handle"])
        after = whole[len(whole) if end is None else end :]
        file.seek(start)
        size = start + copy(stdin, file.fileno()) + len(after)
        write(file.fileno(), after)
        os.ftruncate(file.fileno(), size)

    def handle_seek(self, arguments: dict[str, Any], _stdin: int, _stdout: int) -> None:
        """Move the file's position."""
        self._handle(arguments).seek(arguments["offset"], arguments["whence"])

    def handle_flush(self, arguments: dict[str, Any], _stdin: int, _stdout: int) -> None:
        """Nothing is buffered."""
        self._handle(arguments)

    def handle_close(self, arguments: dict[str, Any], _stdin: int, _stdout: int) -> None:
        """Close it."""
        self._handle(arguments).close()
        del self._handles[arguments["handle"]]

    def _handle(self, arguments: dict[str, Any]) -> io.FileIO:
        file = self._handles.get(arguments["handle"])
        if file is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), arguments["handle"])
        return file


_KINDS: dict[int | None, tuple[str, str]] = {
    errno.ENOENT: ("NotFound", "no such file or directory"),
    errno.EISDIR: ("IsDirectory", "is a directory"),
    errno.ENOTDIR: ("NotDirectory", "not a directory"),
    errno.EEXIST: ("PathAlreadyExists", "path already exists"),
    errno.ENOTEMPTY: ("DirectoryNotEmpty", "directory not empty"),
    errno.EACCES: ("PermissionDenied", "permission denied"),
    errno.EPERM: ("PermissionDenied", "operation not permitted"),
    errno.EROFS: ("PermissionDenied", "read-only file system"),
}


def parsed(command: Any) -> tuple[str, dict[str, Any]]:
    """A command's name and arguments: the only key of an object, and its value."""
    if not isinstance(command, dict):
        raise CommandError("InvalidRequest", "a command is an object with one key", errno.EINVAL)
    words: dict[str, Any] = command  # pyright: ignore[reportUnknownVariableType]
    if len(words) != 1:
        raise CommandError("InvalidRequest", "a command is an object with one key", errno.EINVAL)
    name = next(iter(words))
    if not isinstance(words[name], dict):
        raise CommandError("InvalidRequest", f"{name} takes an object", errno.EINVAL)
    return name, words[name]


def report(stderr: int, kind: str, message: str, number: int) -> int:
    """Say what went wrong; the exit code."""
    what = {"version": 1, "error_kind": kind, "message": message, "errno": number}
    with contextlib.suppress(OSError):
        write(stderr, json.dumps(what).encode() + b"\n")
    return 1


def write(fd: int, data: bytes) -> None:
    """All of ``data``."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def copy(source: int, target: int, limit: int = 0) -> int:
    """Everything from one to the other, to a little over ``limit``; how much it was."""
    total = 0
    spliced = True
    while not limit or total <= limit:
        if spliced:
            try:
                count = os.splice(source, target, CHUNK)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                spliced = False
                continue
        else:
            data = os.read(source, CHUNK)
            write(target, data)
            count = len(data)
        if not count:
            break
        total += count
    return total


def make_parents(path: str) -> None:
    """The directories above ``path``. Raises ``NotADirectoryError`` if one of them is a file."""
    parent = os.path.dirname(path)
    if not parent:
        return
    try:
        os.makedirs(parent, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "", parent) from error


def remove_tree(parent: str, name: str) -> None:
    """Remove a directory and all in it; symbolic links in it are removed, never followed."""
    folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _remove_in(folder, name)
    finally:
        os.close(folder)


def _remove_in(folder: int, name: str) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    inner = os.open(name, flags, dir_fd=folder)
    try:
        with os.scandir(inner) as found:
            items = [(item.name, item.is_dir(follow_symlinks=False)) for item in found]
        for item, is_directory in items:
            if is_directory:
                _remove_in(inner, item)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(item, dir_fd=inner)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=folder)


# --- entries ----------------------------------------------------------------------------------


class Names:
    """Users' and groups' names by the container's own files."""

    def __init__(self) -> None:
        self._users = _numbered("/etc/passwd")
        self._groups = _numbered("/etc/group")

    def user(self, number: int) -> str:
        return self._users.get(number, str(number))

    def group(self, number: int) -> str:
        return self._groups.get(number, str(number))


def _numbered(path: str) -> dict[int, str]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        text = os.read(fd, _NAMES_MAX).decode(errors="replace")
    except OSError:
        return {}
    finally:
        os.close(fd)
    found: dict[int, str] = {}
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2].isdecimal():
            found.setdefault(int(fields[2]), fields[0])
    return found


def entry(path: str, names: Names) -> dict[str, Any]:
    """What a listing says of ``path``."""
    found = os.lstat(path)
    mode = found.st_mode
    kind = "directory" if stat.S_ISDIR(mode) else "symlink" if stat.S_ISLNK(mode) else "file"
    result: dict[str, Any] = {
        "name": os.path.basename(path.rstrip("/")) or "/",
        "path": path,
        "type": kind,
        "size": found.st_size,
        "mode": mode,
        "permissions": f"{stat.S_IMODE(mode):04o}",
        "owner": names.user(found.st_uid),
        "group": names.group(found.st_gid),
        "modified_time": found.st_mtime,
    }
    if kind == "symlink":
        result["symlink_target"] = os.readlink(path)
    return result


# --- watching ---------------------------------------------------------------------------------

_ACCESS, _MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO = 0x1, 0x2, 0x4, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_OVERFLOW, _IGNORED, _ONLYDIR, _ISDIR = 0x4000, 0x8000, 0x01000000, 0x40000000
_DONT_FOLLOW = 0x02000000
_EVENT = struct.Struct("iIII")
_EVENT_NAMES = (
    (_ACCESS, "Access"),
    (_CREATE, "Create"),
    (_MODIFY | _ATTRIB, "Modify"),
    (_DELETE | _DELETE_SELF, "Remove"),
    (_MOVED_FROM, "RenameFrom"),
    (_MOVED_TO, "RenameTo"),
    (_MOVE_SELF, "Rename"),
)


class Watch:
    """Changes of a file or directory, by inotify."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._path: str = arguments["path"]
        self._recursive = bool(arguments.get("recursive"))
        wanted: list[str] | None = arguments.get("filter")
        self._wanted = None if wanted is None else frozenset(wanted)
        timeout: float | None = arguments.get("timeout_secs")
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._paths: dict[int, str] = {}
        self._fd = -1
        self._moved_from: tuple[int, str] | None = None

    def run(self, stdin: int, stdout: int) -> None:
        self._fd = check(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            self._add(self._path)
            self._loop(stdin, stdout)
        finally:
            os.close(self._fd)

    def _loop(self, stdin: int, stdout: int) -> None:
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(stdin, select.POLLIN)
        poller.register(stdout, 0)
        while True:
            left = None
            if self._deadline is not None:
                left = max(0.0, self._deadline - time.monotonic()) * 1000
            ready = dict(poller.poll(left))
            if not ready or stdout in ready:
                return
            if stdin in ready and not os.read(stdin, 4096):
                return
            if self._fd in ready:
                self._report(stdout)

    def _report(self, stdout: int) -> None:
        data = os.read(self._fd, 64 * 1024)
        place = 0
        while place < len(data):
            number, mask, cookie, length = _EVENT.unpack_from(data, place)
            place += _EVENT.size
            name = os.fsdecode(data[place : place + length].rstrip(b"\0"))
            place += length
            self._event(stdout, number, mask, cookie, name)
        self._flush(stdout)

    def _event(self, stdout: int, number: int, mask: int, cookie: int, name: str) -> None:
        if mask & _OVERFLOW:
            return self._say(stdout, "Unknown", [self._path])
        folder = self._paths.get(number, self._path)
        if mask & _IGNORED:
            self._paths.pop(number, None)
            return None
        if mask & _ISDIR and mask & _ACCESS:  # a listing, most often our own
            return None
        path = os.path.join(folder, name) if name else folder
        if mask & _ISDIR and mask & (_CREATE | _MOVED_TO) and self._recursive:
            with contextlib.suppress(OSError):
                self._add(path)
        if mask & _MOVED_TO and self._moved_from and self._moved_from[0] == cookie:
            (_, before), self._moved_from = self._moved_from, None
            return self._say(stdout, "Rename", [before, path])
        self._flush(stdout)
        if mask & _MOVED_FROM:
            self._moved_from = (cookie, path)
            return None
        for bits, event in _EVENT_NAMES:
            if mask & bits and not (mask & _DELETE_SELF and path != self._path):
                return self._say(stdout, event, [path])
        return None

    def _flush(self, stdout: int) -> None:
        """What was moved went somewhere that nobody watches."""
        if self._moved_from is not None:
            (_, path), self._moved_from = self._moved_from, None
            self._say(stdout, "RenameFrom", [path])

    def _say(self, stdout: int, event: str, paths: list[str]) -> None:
        if self._wanted is None or event in self._wanted:
            write(stdout, json.dumps({"event_type": event, "paths": paths}).encode() + b"\n")

    def _mask(self) -> int:
        mask = _CREATE | _MODIFY | _ATTRIB | _DELETE | _DELETE_SELF | _MOVED_FROM | _MOVED_TO
        if self._wanted is None or "Access" in self._wanted:
            mask |= _ACCESS
        return mask | _MOVE_SELF

    def _add(self, path: str) -> None:
        mask = self._mask() if path == self._path else self._mask() | _DONT_FOLLOW
        number = check_path(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask), path)
        self._paths[number] = path
        if not self._recursive or not os.path.isdir(path):
            return
        with os.scandir(path) as found:
            folders = [item.path for item in found if item.is_dir(follow_symlinks=False)]
        for folder in folders:
            if len(self._paths) >= WATCHES_MAX:
                raise CommandError(
                    "Io", f"more than {WATCHES_MAX} directories cannot be watched", errno.ENOSPC
                )
            with contextlib.suppress(FileNotFoundError, PermissionError):
                self._add(folder)


def check_path(result: int, path: str) -> int:
    """As ``check``; the error names ``path``."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


if __name__ == "__main__":
    main()
