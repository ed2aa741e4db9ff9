"""The dispatcher of the server: handlers by RPC name, each wrapped once in the same pipeline.

Order for every RPC: who calls (auth), is that client served (version), decode, has this been
answered already (idempotency), the handler, encode, map errors, log, record.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from homeport.kernel.clock import SystemClock
from homeport.kernel.errors import (
    InternalError,
    InvalidError,
    PermissionDeniedError,
    UnimplementedError,
)
from homeport.rpc.admission import NEW, Admission
from homeport.rpc.auth import CLIENT_ONLY, Authenticator
from homeport.rpc.context import Context, Identity, TaskIdentity, caller_of
from homeport.rpc.errors import is_unexpected, status_error
from homeport.rpc.idempotency import Answer, Idempotency
from homeport.rpc.methods import Method, check_classes, client_services, methods_of
from homeport.rpc.missing import missing_sentence
from homeport.rpc.rates import Rates
from homeport.rpc.repeatable import ENDS_WITH_CALLER, REPEATABLE
from homeport.rpc.versions import require_supported
from homeport.storage.database import needs_room
from homeport.transport.dispatch import OK, IncomingCall, StatusError, Trailers
from homeport.transport.recording import Recorder

log = structlog.get_logger(__name__)

_CLIENT_TYPES: Final = {str(number): number for number in range(16)}


class _Bound:
    """One RPC ready to be called. ``handler`` is ``None`` where Homeport has none."""

    __slots__ = ("ends_with_caller", "handler", "is_repeatable", "method", "name", "parse")

    def __init__(self, method: Method, handler: Callable[..., Any] | None) -> None:
        self.method = method
        self.name = method.name
        self.handler = handler
        self.parse: Callable[[bytes], Message] = method.request.FromString
        self.is_repeatable = method.name in REPEATABLE
        self.ends_with_caller = method.name in ENDS_WITH_CALLER


class Registry:
    """Answers every RPC of ``services`` with the handlers' methods of the same name.

    Raises ``ValueError`` at construction for a handler whose name the protocol does not have, a
    second handler for an RPC, and a coroutine where a stream is wanted or the reverse.

    ``http_base`` is told to callers that did not say which authority they used; ``log_calls``
    writes a debug line per RPC (failures are always logged, bodies never).
    """

    def __init__(
        self,
        handlers: Sequence[object],
        *,
        authenticator: Authenticator,
        services: Sequence[ServiceDescriptor] | None = None,
        idempotency: Idempotency | None = None,
        recorder: Recorder | None = None,
        admission: Admission | None = None,
        rates: Rates | None = None,
        http_base: str = "",
        log_calls: bool = False,
    ) -> None:
        known = methods_of(client_services() if services is None else services)
        owners = check_classes([type(handler) for handler in handlers], known)
        by_class = {type(handler): handler for handler in handlers}
        self._methods: dict[str, _Bound] = {}
        for name, method in known.items():
            owner = owners.get(name)
            handler = getattr(by_class[owner], name) if owner is not None else None
            self._methods[method.path] = _Bound(method, handler)
        self._authenticator = authenticator
        self._idempotency = idempotency or Idempotency(SystemClock())
        self._recorder = recorder or Recorder.from_environment()
        self._admission = admission
        self._rates = rates
        self._http_base = http_base
        self._log_calls = log_calls
        # Unique within the log of one installation, and cheap: a random start and a count.
        self._request_prefix = secrets.token_hex(4)
        self._request_numbers = itertools.count(1)

    async def stop(self) -> None:
        """End the work whose callers are gone."""
        await self._idempotency.stop()

    # ── transport.dispatch.Dispatcher ───────────────────────────────────────────────────────

    def is_stream(self, path: str) -> bool | None:
        bound = self._methods.get(path)
        return None if bound is None else bound.method.is_stream

    async def unary(self, call: IncomingCall, body: bytes) -> bytes:
        bound = self._require(call.path)
        started = time.perf_counter()
        request_id = self._new_request_id()
        try:
            identity = self._authenticator.identify(call, bound.name)
            context = self._context(bound, call, identity, self._base_of(call), request_id)
            answer = await self._answer(bound, call, context, body)
        except Exception as error:
            raise self._failed(error, bound, call, request_id, started) from None
        self._succeeded(bound, call, request_id, started)
        return answer

    async def stream(self, call: IncomingCall, body: bytes) -> AsyncIterator[bytes]:
        bound = self._require(call.path)
        started = time.perf_counter()
        request_id = self._new_request_id()
        try:
            identity = self._authenticator.identify(call, bound.name)
            context = self._context(bound, call, identity, self._base_of(call), request_id)
            async for message in self._messages(bound, context, body):
                yield message
        except Exception as error:
            raise self._failed(error, bound, call, request_id, started) from None
        self._succeeded(bound, call, request_id, started)

    # ── the node link's entry: the node vouches for the container ───────────────────────────

    async def forwarded_unary(
        self,
        path: str,
        identity: TaskIdentity,
        metadata: dict[str, str],
        body: bytes,
        timeout_s: float | None,
        http_base: str,
    ) -> tuple[bytes, Trailers]:
        """A container's unary RPC, without a token. Raises ``StatusError`` as ``unary`` does."""
        call = IncomingCall(path, metadata, timeout_s, identity.task_id)
        bound = self._require(path)
        started = time.perf_counter()
        request_id = self._new_request_id()
        try:
            _require_own_right(bound)
            context = self._context(bound, call, identity, http_base, request_id)
            answer = await self._answer(bound, call, context, body)
        except Exception as error:
            raise self._failed(error, bound, call, request_id, started) from None
        self._succeeded(bound, call, request_id, started)
        return answer, call.trailers

    async def forwarded_stream(
        self,
        path: str,
        identity: TaskIdentity,
        metadata: dict[str, str],
        body: bytes,
        timeout_s: float | None,
        http_base: str,
    ) -> AsyncIterator[bytes]:
        """A container's streaming RPC, without a token. Raises ``StatusError``."""
        call = IncomingCall(path, metadata, timeout_s, identity.task_id)
        bound = self._require(path)
        started = time.perf_counter()
        request_id = self._new_request_id()
        try:
            _require_own_right(bound)
            context = self._context(bound, call, identity, http_base, request_id)
            async for message in self._messages(bound, context, body):
                yield message
        except Exception as error:
            raise self._failed(error, bound, call, request_id, started) from None
        self._succeeded(bound, call, request_id, started)

    # ── the pipeline ────────────────────────────────────────────────────────────────────────

    def _require(self, path: str) -> _Bound:
        bound = self._methods.get(path)
        if bound is None:
            raise status_error(
                UnimplementedError(f"this server's protocol has no method {path[:200]}"), path, ""
            )
        return bound

    def _new_request_id(self) -> str:
        return f"{self._request_prefix}-{next(self._request_numbers)}"

    def _base_of(self, call: IncomingCall) -> str:
        authority = call.metadata.get(":authority")
        if not authority or not _is_sound(authority):
            return self._http_base
        # Set by a reverse proxy that terminates TLS.
        is_tls = call.metadata.get("x-forwarded-proto") == "https"
        return f"{'https' if is_tls else 'http'}://{authority}"

    def _context(
        self, bound: _Bound, call: IncomingCall, identity: Identity, http_base: str, request_id: str
    ) -> Context:
        if self._rates is not None:
            self._rates.check(identity)
        get = call.metadata.get
        client_version = get("x-modal-client-version", "")
        client_type = _CLIENT_TYPES.get(get("x-modal-client-type", ""), 0)
        if client_type <= 3:  # the other SDKs' version numbers are not the Python client's
            require_supported(client_version)
        return Context(
            bound.name,
            request_id,
            identity,
            client_version,
            client_type,
            http_base,
            get("x-idempotency-key", ""),
            call.timeout_s,
            call.metadata,
            call.trailers,
        )

    async def _answer(
        self, bound: _Bound, call: IncomingCall, context: Context, body: bytes
    ) -> bytes:
        handler = _implemented(bound)
        if self._admission is not None:
            self._admission.check(bound.name, context.identity)
        needs_room.set(bound.name in NEW and not isinstance(context.identity, TaskIdentity))
        request = _decode(bound, body)
        key = context.idempotency_key
        if bound.is_repeatable or not key:
            call.interruptible = bound.is_repeatable
            return _encode(bound, await handler(request, context))
        call.interruptible = bound.ends_with_caller

        async def work() -> Answer:
            answer = _encode(bound, await handler(request, context))
            return answer, context.trailers

        answer, trailers = await self._idempotency.run(
            (caller_of(context.identity), bound.name, key),
            work,
            ends_with_caller=bound.ends_with_caller,
        )
        if trailers and trailers is not call.trailers:
            call.trailers.extend(trailers)
        return answer

    async def _messages(self, bound: _Bound, context: Context, body: bytes) -> AsyncIterator[bytes]:
        handler = _implemented(bound)
        messages = handler(_decode(bound, body), context)
        try:
            async for message in messages:
                yield _encode(bound, message)
        finally:
            await messages.aclose()

    # ── outcomes ────────────────────────────────────────────────────────────────────────────

    def _succeeded(
        self, bound: _Bound, call: IncomingCall, request_id: str, started: float
    ) -> None:
        if self._recorder is not None:
            self._recorder.note(bound.name, call.metadata.get("x-modal-client-version", ""))
        if self._log_calls:
            log.debug(
                "rpc",
                method=bound.name,
                request_id=request_id,
                status=OK,
                duration_ms=_elapsed_ms(started),
            )

    def _failed(
        self, error: Exception, bound: _Bound, call: IncomingCall, request_id: str, started: float
    ) -> StatusError:
        status = status_error(error, bound.name, request_id)
        log.warning(
            "rpc failed",
            method=bound.name,
            request_id=request_id,
            status=status.status,
            message=status.message,
            client_version=call.metadata.get("x-modal-client-version", ""),
            duration_ms=_elapsed_ms(started),
            exc_info=error if is_unexpected(error) else None,
        )
        return status


def _implemented(bound: _Bound) -> Callable[..., Any]:
    if bound.handler is None:
        raise UnimplementedError(missing_sentence(bound.name))
    return bound.handler


def _require_own_right(bound: _Bound) -> None:
    """Raises ``PermissionDeniedError`` for what a container may not do in the name of its app."""
    if bound.name in CLIENT_ONLY:
        raise PermissionDeniedError(f"{bound.name} is not for containers: it needs a token")


def _decode(bound: _Bound, body: bytes) -> Message:
    try:
        return bound.parse(body)
    except DecodeError:
        raise InvalidError(
            f"the request of {bound.name} ({len(body)} bytes) is not a valid "
            f"{bound.method.request.DESCRIPTOR.name}"
        ) from None


def _encode(bound: _Bound, message: object) -> bytes:
    if type(message) is not bound.method.response:
        raise InternalError(f"the handler of {bound.name} answered with a {type(message).__name__}")
    return message.SerializeToString()


def _elapsed_ms(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 3)


@lru_cache(maxsize=256)
def _is_sound(authority: str) -> bool:
    """Whether it can be part of a URL: callers may send anything as one."""
    try:
        parts = urlsplit(f"http://{authority}")
        return parts.netloc == authority and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
