"""Which RPCs there are, and which handler answers each: the protocol's descriptor against classes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from modal_proto import api_pb2

from homeport.programs import older_wire


def client_service() -> ServiceDescriptor:
    """The control plane's service as the installed client describes it."""
    return api_pb2.DESCRIPTOR.services_by_name["ModalClient"]


def client_services() -> list[ServiceDescriptor]:
    """That service and what older clients use beyond it."""
    return [client_service(), older_wire.SERVICE]


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC of the protocol."""

    name: str
    path: str
    is_stream: bool
    request: type[Message]
    response: type[Message]


def methods_of(services: Sequence[ServiceDescriptor]) -> dict[str, Method]:
    """All RPCs by bare name. Raises ``ValueError`` for a name that two services have."""
    found: dict[str, Method] = {}
    for service in services:
        for descriptor in service.methods:
            if descriptor.name in found:
                raise ValueError(f"two services have a method {descriptor.name}")
            found[descriptor.name] = _method(service, descriptor)
    return found


def _method(service: ServiceDescriptor, descriptor: MethodDescriptor) -> Method:
    return Method(
        name=descriptor.name,
        path=f"/{service.full_name}/{descriptor.name}",
        is_stream=descriptor.server_streaming,
        request=GetMessageClass(descriptor.input_type),
        response=GetMessageClass(descriptor.output_type),
    )


def handler_names(kind: type) -> Iterator[str]:
    """Names of the RPC handlers that a class has: its public methods in CamelCase."""
    for name in dir(kind):
        if name[0].isupper() and callable(getattr(kind, name)):
            yield name


def check_classes(kinds: Iterable[type], known: dict[str, Method]) -> dict[str, type]:
    """Which class answers each RPC.

    Raises ``ValueError`` for a name the protocol does not have, an RPC answered twice, and a
    coroutine where a stream is wanted or the reverse.
    """
    owners: dict[str, type] = {}
    for kind in kinds:
        for name in handler_names(kind):
            where = f"{kind.__name__}.{name}"
            method = known.get(name)
            if method is None:
                raise ValueError(f"{where}: the protocol has no RPC of that name")
            if name in owners:
                raise ValueError(f"{where}: {owners[name].__name__} answers that RPC already")
            _check_shape(getattr(kind, name), method, where)
            owners[name] = kind
    return owners


def _check_shape(function: Callable[..., Any], method: Method, where: str) -> None:
    if method.is_stream and not inspect.isasyncgenfunction(function):
        raise ValueError(f"{where}: the RPC answers with a stream, so an async generator is wanted")
    if not method.is_stream and not inspect.iscoroutinefunction(function):
        raise ValueError(f"{where}: the RPC has one answer, so a coroutine function is wanted")
