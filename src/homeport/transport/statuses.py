"""The one table from the platform's errors to gRPC statuses, for server and node.

Official clients retry INTERNAL, UNKNOWN, UNAVAILABLE, CANCELLED and DEADLINE_EXCEEDED (three more
attempts within a second) and take every other status as final, so a permanent failure must never
map to one of the first group.
"""

from __future__ import annotations

from typing import Final

from homeport.kernel.errors import Code
from homeport.transport import dispatch

STATUS_OF_CODE: Final[dict[Code, int]] = {
    Code.INVALID: dispatch.INVALID_ARGUMENT,
    Code.NOT_FOUND: dispatch.NOT_FOUND,
    Code.ALREADY_EXISTS: dispatch.ALREADY_EXISTS,
    Code.CONFLICT: dispatch.FAILED_PRECONDITION,
    Code.UNAUTHENTICATED: dispatch.UNAUTHENTICATED,
    Code.PERMISSION_DENIED: dispatch.PERMISSION_DENIED,
    Code.EXHAUSTED: dispatch.RESOURCE_EXHAUSTED,
    Code.UNIMPLEMENTED: dispatch.UNIMPLEMENTED,
    Code.UNAVAILABLE: dispatch.UNAVAILABLE,
    Code.DEADLINE: dispatch.DEADLINE_EXCEEDED,
    Code.INTERNAL: dispatch.INTERNAL,
}
