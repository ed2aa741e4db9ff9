"""What callers are told about errors: a gRPC status and a sentence.

Messages are shown to users verbatim; an empty one makes the CLI print a traceback.
"""

from __future__ import annotations

import base64
import errno

from modal_proto import api_pb2

from homeport.kernel.errors import Code, ExhaustedError, HomeportError
from homeport.transport import dispatch
from homeport.transport.dispatch import StatusError, Trailers
from homeport.transport.statuses import STATUS_OF_CODE


def status_error(error: Exception, method: str, request_id: str) -> StatusError:
    """What the caller of ``method`` is told about ``error``; never an empty message."""
    if isinstance(error, StatusError):
        return error
    if isinstance(error, HomeportError):
        status = STATUS_OF_CODE[error.code]
        message = error.message or f"{method} failed ({error.code.value}), request {request_id}"
        return StatusError(status, message, _trailers(error, status, message))
    if _is_full(error):
        return StatusError(
            dispatch.RESOURCE_EXHAUSTED,
            "The disk of the Homeport server is full: nothing more can be stored. "
            "Free some space there and try again.",
        )
    return StatusError(
        dispatch.INTERNAL,
        f"internal error, request {request_id}; the server's log has details",
    )


def is_unexpected(error: Exception) -> bool:
    """Whether ``error`` is a defect whose traceback belongs in the log."""
    if isinstance(error, StatusError):
        return error.status in (dispatch.INTERNAL, dispatch.UNKNOWN)
    if isinstance(error, HomeportError):
        return error.code is Code.INTERNAL
    return not _is_full(error)


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _trailers(error: HomeportError, status: int, message: str) -> Trailers:
    if not isinstance(error, ExhaustedError) or error.retry_after_s is None:
        return []
    return [("grpc-status-details-bin", _retry_details(status, message, error.retry_after_s))]


def _retry_details(status: int, message: str, retry_after_s: float) -> str:
    # Clients 1.2.3+ sleep that long and come back without limit, whatever the status.
    details = api_pb2.RPCStatus(code=status, message=message)
    policy = api_pb2.RPCRetryPolicy(retry_after_secs=retry_after_s)
    details.details.add().Pack(policy)
    return base64.b64encode(details.SerializeToString()).decode().rstrip("=")
