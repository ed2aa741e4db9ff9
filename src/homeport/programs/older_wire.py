"""Messages of an RPC that the newest client no longer describes and older ones use.

``ContainerFilesystemExecGetOutput`` is in the protocol of clients up to 1.6.0.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

_PACKAGE: Final = "modal.client"
_Field = FieldDescriptorProto


def _described() -> FileDescriptorProto:
    file = FileDescriptorProto(name="homeport/older.proto", package=_PACKAGE, syntax="proto3")
    request = file.message_type.add(name="ContainerFilesystemExecGetOutputRequest")
    _add(request, "exec_id", 1, _Field.TYPE_STRING)
    _add(request, "timeout", 2, _Field.TYPE_FLOAT)
    error = file.message_type.add(name="SystemErrorMessage")
    _add(error, "error_code", 1, _Field.TYPE_INT32)  # an enumeration with the numbers of errno
    _add(error, "error_message", 2, _Field.TYPE_STRING)
    batch = file.message_type.add(name="FilesystemRuntimeOutputBatch")
    _add(batch, "output", 1, _Field.TYPE_BYTES).label = _Field.LABEL_REPEATED
    _add(batch, "error", 2, _Field.TYPE_MESSAGE).type_name = f".{_PACKAGE}.SystemErrorMessage"
    _add(batch, "batch_index", 3, _Field.TYPE_UINT64)
    _add(batch, "eof", 4, _Field.TYPE_BOOL)
    service = file.service.add(name="ModalClient")
    service.method.add(
        name="ContainerFilesystemExecGetOutput",
        input_type=f".{_PACKAGE}.ContainerFilesystemExecGetOutputRequest",
        output_type=f".{_PACKAGE}.FilesystemRuntimeOutputBatch",
        server_streaming=True,
    )
    return file


def _add(message: Any, name: str, number: int, kind: Any) -> Any:
    return message.field.add(name=name, number=number, type=kind, label=_Field.LABEL_OPTIONAL)


_POOL: Final[Any] = DescriptorPool()
_POOL.AddSerializedFile(_described().SerializeToString())

SERVICE: Final[ServiceDescriptor] = _POOL.FindServiceByName(f"{_PACKAGE}.ModalClient")
"""The client's service with what is missing in its newest description."""
FilesystemRuntimeOutputBatch: Final[Any] = GetMessageClass(
    _POOL.FindMessageTypeByName(f"{_PACKAGE}.FilesystemRuntimeOutputBatch")
)


def message(**fields: Any) -> Message:
    """A ``FilesystemRuntimeOutputBatch``."""
    return FilesystemRuntimeOutputBatch(**fields)
