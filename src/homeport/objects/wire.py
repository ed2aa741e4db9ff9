"""Conversions shared by the RPC handlers of objects."""

from __future__ import annotations

from typing import Final

from modal_proto import api_pb2

from homeport.kernel.errors import InvalidError
from homeport.objects.model import Creation, Kind, StoredObject

_CREATION: Final[dict[int, Creation]] = {
    api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED: Creation.LOOK_UP,
    api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING: Creation.IF_MISSING,
    api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS: Creation.FAIL_IF_EXISTS,
    api_pb2.OBJECT_CREATION_TYPE_EPHEMERAL: Creation.EPHEMERAL,
}


def creation_of(kind: Kind, number: api_pb2.ObjectCreationType.ValueType) -> Creation:
    """What a ``…GetOrCreate`` asks for. Raises ``InvalidError`` for what has no meaning here."""
    creation = _CREATION.get(number)
    if creation is None:
        raise InvalidError(f"a {kind.noun} is not created as {creation_name(number)}")
    return creation


def creation_name(number: api_pb2.ObjectCreationType.ValueType) -> str:
    """What the protocol calls that way of creation; the number if it does not know it."""
    try:
        return api_pb2.ObjectCreationType.Name(number)
    except ValueError:
        return str(number)


def creation_info(item: StoredObject) -> api_pb2.CreationInfo:
    """When and by whom it was made."""
    return api_pb2.CreationInfo(created_at=item.created_at, created_by=item.created_by)
