"""The older RPCs' messages as the command router's, and back."""

from __future__ import annotations

import json
from typing import Any, Final

from modal_proto import api_pb2
from modal_proto import task_command_router_pb2 as router

from homeport.kernel.errors import InvalidError, UnimplementedError

FILE_TOOL: Final = "/__modal/.bin/modal-sandbox-fs-tools"
WATCH: Final = "w"
"""What the id of a command ends with whose output is events."""
_SIGNALLED: Final = 128
_EIO: Final = 5


def exec_id_of(task_id: str, program_id: str, kind: str = "") -> str:
    """An id that says where the program is."""
    return f"{task_id}/{program_id}/{kind}"


def parse_exec_id(exec_id: str) -> tuple[str, str, str]:
    """Task, program, kind. Raises ``InvalidError``."""
    parts = exec_id.split("/")
    if len(parts) != 3:
        raise InvalidError(f"{exec_id[:80]!r} is not the id of a program of this server")
    return parts[0], parts[1], parts[2]


def start_request(
    request: api_pb2.ContainerExecRequest, program_id: str
) -> router.TaskExecStartRequest:
    """A ``ContainerExec`` for the router."""
    result = router.TaskExecStartRequest(
        task_id=request.task_id,
        exec_id=program_id,
        command_args=request.command,
        stdout_config=router.TASK_EXEC_STDOUT_CONFIG_PIPE,
        stderr_config=router.TASK_EXEC_STDERR_CONFIG_PIPE,
        timeout_secs=request.timeout_secs,
        workdir=request.workdir,
        secret_ids=request.secret_ids,
    )
    if request.HasField("pty_info"):
        result.pty_info.CopyFrom(request.pty_info)
    return result


def file_request(task_id: str, program_id: str, command: dict[str, Any]) -> Any:
    """A file command for the router."""
    return router.TaskExecStartRequest(
        task_id=task_id,
        exec_id=program_id,
        command_args=[FILE_TOOL, json.dumps(command)],
        stdout_config=router.TASK_EXEC_STDOUT_CONFIG_PIPE,
        stderr_config=router.TASK_EXEC_STDERR_CONFIG_PIPE,
    )


def exit_code(answer: router.TaskExecWaitResponse | router.TaskExecPollResponse) -> int:
    """As shells say it: a signal's number is added to 128."""
    if answer.WhichOneof("exit_status") == "signal":
        return _SIGNALLED + answer.signal
    return answer.code


def file_command(
    request: api_pb2.ContainerFilesystemExecRequest,
) -> tuple[dict[str, Any], bytes]:
    """The file tool's command for a request, and what it reads from its standard input."""
    kind = request.WhichOneof("file_exec_request_oneof")
    match kind:
        case "file_open_request":
            opened = request.file_open_request
            return {"HandleOpen": {"path": opened.path, "mode": opened.mode}}, b""
        case "file_read_request":
            read = request.file_read_request
            count = read.n if read.HasField("n") else None
            return {"HandleRead": {"handle": read.file_descriptor, "n": count}}, b""
        case "file_read_line_request":
            line = request.file_read_line_request
            return {"HandleReadLine": {"handle": line.file_descriptor}}, b""
        case "file_write_request":
            write = request.file_write_request
            return {"HandleWrite": {"handle": write.file_descriptor}}, write.data
        case "file_flush_request":
            return {"HandleFlush": {"handle": request.file_flush_request.file_descriptor}}, b""
        case "file_seek_request":
            seek = request.file_seek_request
            where = {"offset": seek.offset, "whence": int(seek.whence)}
            return {"HandleSeek": {"handle": seek.file_descriptor, **where}}, b""
        case "file_close_request":
            return {"HandleClose": {"handle": request.file_close_request.file_descriptor}}, b""
        case "file_delete_bytes_request":
            cut = request.file_delete_bytes_request
            return {"HandleReplace": {"handle": cut.file_descriptor, **_range(cut)}}, b""
        case "file_write_replace_bytes_request":
            replace = request.file_write_replace_bytes_request
            arguments = {"handle": replace.file_descriptor, **_range(replace)}
            return {"HandleReplace": arguments}, replace.data
        case "file_ls_request":
            return {"ListNames": {"path": request.file_ls_request.path}}, b""
        case "file_mkdir_request":
            made = request.file_mkdir_request
            return {"MakeDirectory": {"path": made.path, "parents": made.make_parents}}, b""
        case "file_rm_request":
            gone = request.file_rm_request
            return {"Remove": {"path": gone.path, "recursive": gone.recursive}}, b""
        case "file_watch_request":
            watch = request.file_watch_request
            timeout = watch.timeout_secs if watch.HasField("timeout_secs") else None
            arguments = {"recursive": watch.recursive, "timeout_secs": timeout}
            return {"Watch": {"path": watch.path, "filter": None, **arguments}}, b""
        case _:
            raise UnimplementedError(f"Homeport does not know the file request {kind}")


def _range(request: Any) -> dict[str, Any]:
    return {
        name: getattr(request, f"{name}_{end}clusive")
        if request.HasField(f"{name}_{end}clusive")
        else None
        for name, end in (("start", "in"), ("end", "ex"))
    }


def system_error(text: bytes) -> tuple[int, str]:
    """The errno and the sentence in what the file tool said on its standard error."""
    try:
        said: Any = json.loads(text)
        return int(said.get("errno") or _EIO), str(said["message"])
    except (ValueError, KeyError, AttributeError):
        return _EIO, text.decode(errors="replace") or "the operation failed"
