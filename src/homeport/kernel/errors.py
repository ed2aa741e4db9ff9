"""The errors of the platform: one base with a code and a sentence for the person at the client.

Edges translate them by table (``rpc/errors.py`` to gRPC statuses, ``gateway/errors.py`` to HTTP);
nothing below an edge knows a transport's codes.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Code(Enum):
    """What kind of failure it is, in transport-neutral words."""

    INVALID = "invalid"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    CONFLICT = "conflict"
    UNAUTHENTICATED = "unauthenticated"
    PERMISSION_DENIED = "permission_denied"
    EXHAUSTED = "exhausted"
    UNIMPLEMENTED = "unimplemented"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    INTERNAL = "internal"


class HomeportError(Exception):
    """Base of all errors that carry a message for a user.

    ``message`` says what was asked, what is so, and what to do.
    """

    code: Code = Code.INTERNAL

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidError(HomeportError):
    """The request cannot be carried out as written."""

    code = Code.INVALID


class NotFoundError(HomeportError):
    """The named object does not exist (any more)."""

    code = Code.NOT_FOUND


class AlreadyExistsError(HomeportError):
    """The name is taken."""

    code = Code.ALREADY_EXISTS


class ConflictError(HomeportError):
    """The object's state does not allow it now."""

    code = Code.CONFLICT


class UnauthenticatedError(HomeportError):
    """The caller's credentials are missing or wrong."""

    code = Code.UNAUTHENTICATED


class PermissionDeniedError(HomeportError):
    """The caller is known but may not do this."""

    code = Code.PERMISSION_DENIED


class ExhaustedError(HomeportError):
    """A stated limit is reached; ``retry_after_s`` hints when to come back, if that helps."""

    code = Code.EXHAUSTED

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UnimplementedError(HomeportError):
    """Homeport does not do this (yet)."""

    code = Code.UNIMPLEMENTED


class UnavailableError(HomeportError):
    """Cannot be answered now; the same request may succeed later."""

    code = Code.UNAVAILABLE


class DeadlineError(HomeportError):
    """What was waited for did not happen within the asked time."""

    code = Code.DEADLINE


class InternalError(HomeportError):
    """A defect of ours; details are in the log under the request id."""

    code = Code.INTERNAL


def error_of(code: Code, message: str) -> HomeportError:
    """The error of that kind, as another process of the platform reported it."""
    return _CLASSES.get(code, InternalError)(message)


_CLASSES: Final[dict[Code, type[HomeportError]]] = {
    kind.code: kind for kind in HomeportError.__subclasses__()
}
