"""The pipeline that every RPC goes through, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import structlog
from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2
from tests.unit.rpc.rpc_harness import SERVICE, body, call, registry

from homeport.kernel.errors import ExhaustedError, NotFoundError
from homeport.rpc.auth import CLIENT_ONLY
from homeport.rpc.context import AnonymousIdentity, ClientIdentity, Context, TaskIdentity
from homeport.rpc.registry import Registry
from homeport.transport import dispatch
from homeport.transport.dispatch import StatusError
from homeport.transport.recording import Recorder

TASK = TaskIdentity("ta-1", "ap-1", "main")


class Dicts:
    """Answers a unary and a streaming RPC; keeps the contexts it saw."""

    def __init__(self, failure: BaseException | None = None) -> None:
        self.seen: list[Context] = []
        self.failure = failure
        self.closed = 0

    async def DictLen(
        self, request: api_pb2.DictLenRequest, ctx: Context
    ) -> api_pb2.DictLenResponse:
        self.seen.append(ctx)
        if self.failure is not None:
            raise self.failure
        return api_pb2.DictLenResponse(len=len(request.dict_id))

    async def DictContents(
        self, request: api_pb2.DictContentsRequest, ctx: Context
    ) -> AsyncIterator[api_pb2.DictEntry]:
        self.seen.append(ctx)
        try:
            yield api_pb2.DictEntry(key=b"a")
            if self.failure is not None:
                raise self.failure
            yield api_pb2.DictEntry(key=b"b")
        finally:
            self.closed += 1


def unary(edge: Registry, method: str, data: bytes = b"", **metadata: str) -> bytes:
    return asyncio.run(edge.unary(call(method, **metadata), data))


def failure(edge: Registry, method: str, data: bytes = b"", **metadata: str) -> StatusError:
    with pytest.raises(StatusError) as caught:
        unary(edge, method, data, **metadata)
    assert caught.value.message
    return caught.value


async def collect(messages: AsyncIterator[bytes]) -> list[bytes]:
    return [message async for message in messages]


# ── construction ────────────────────────────────────────────────────────────────────────────


def test_refuses_a_handler_the_protocol_does_not_have() -> None:
    class Wrong:
        async def DictFly(self, request: object, ctx: Context) -> object: ...

    with pytest.raises(ValueError, match=r"Wrong\.DictFly: the protocol has no RPC"):
        registry(Wrong())


def test_refuses_two_handlers_for_one_rpc() -> None:
    class Second:
        async def DictLen(self, request: object, ctx: Context) -> object: ...

    with pytest.raises(ValueError, match=r"Second\.DictLen: Dicts answers that RPC already"):
        registry(Dicts(), Second())


def test_refuses_a_coroutine_for_a_stream_and_the_reverse() -> None:
    class Flat:
        async def DictContents(self, request: object, ctx: Context) -> object: ...

    class Streaming:
        async def DictLen(self, request: object, ctx: Context) -> AsyncIterator[object]:
            yield

    with pytest.raises(ValueError, match="async generator is wanted"):
        registry(Flat())
    with pytest.raises(ValueError, match="coroutine function is wanted"):
        registry(Streaming())


def test_knows_streams_by_the_protocol() -> None:
    edge = registry()
    assert edge.is_stream("/modal.client.ModalClient/DictContents") is True
    assert edge.is_stream("/modal.client.ModalClient/DictLen") is False
    assert edge.is_stream("/modal.client.ModalClient/Nothing") is None


# ── calls ───────────────────────────────────────────────────────────────────────────────────


def test_answers_a_unary_rpc_with_the_callers_context() -> None:
    dicts = Dicts()
    edge = registry(dicts)
    request = api_pb2.DictLenRequest(dict_id="di-12")
    answer = unary(edge, "DictLen", body(request), x_idempotency_key="k")
    assert api_pb2.DictLenResponse.FromString(answer).len == 5
    (ctx,) = dicts.seen
    assert ctx.method == "DictLen"
    assert ctx.identity == ClientIdentity("ak-1")
    assert ctx.client_version == "1.6.4"
    assert ctx.client_type == 1
    assert ctx.http_base == "http://here:7460"
    assert ctx.idempotency_key == "k"


def test_the_http_base_follows_a_proxy_that_terminates_tls() -> None:
    dicts = Dicts()
    unary(registry(dicts), "DictLen", x_forwarded_proto="https")
    assert dicts.seen[0].http_base == "https://here:7460"


@pytest.mark.parametrize("authority", ["[::1", "[", "a/b", "here:99999", "here:port", "a b", "?"])
def test_the_http_base_is_a_url_whatever_authority_is_said(authority: str) -> None:
    dicts = Dicts()
    unary(registry(dicts, http_base="http://own"), "DictLen", **{":authority": authority})
    base = dicts.seen[0].http_base
    assert urlsplit(base).hostname is not None
    assert base in ("http://own", f"http://{authority}")
    assert ("/" in authority or "?" in authority) <= (base == "http://own")


def test_answers_a_stream() -> None:
    edge = registry(Dicts())
    messages = asyncio.run(collect(edge.stream(call("DictContents"), b"")))
    assert [api_pb2.DictEntry.FromString(message).key for message in messages] == [b"a", b"b"]


def test_a_stream_that_is_left_ends_its_handler() -> None:
    dicts = Dicts()

    async def leave() -> None:
        messages = registry(dicts).stream(call("DictContents"), b"")
        await anext(messages)
        await messages.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert dicts.closed == 1


def test_request_ids_differ() -> None:
    dicts = Dicts()
    edge = registry(dicts)
    unary(edge, "DictLen")
    unary(edge, "DictLen")
    assert dicts.seen[0].request_id != dicts.seen[1].request_id


def test_warnings_travel_as_trailers() -> None:
    class Warns:
        async def DictLen(
            self, request: api_pb2.DictLenRequest, ctx: Context
        ) -> api_pb2.DictLenResponse:
            ctx.warn("old — slow")
            return api_pb2.DictLenResponse()

    incoming = call("DictLen")
    asyncio.run(registry(Warns()).unary(incoming, b""))
    assert incoming.trailers == [("x-modal-warning", "old%20%E2%80%94%20slow")]


def test_cancelling_a_read_cancels_its_handler() -> None:
    class Waits:
        def __init__(self) -> None:
            self.cancelled = False

        async def DictLen(
            self, request: api_pb2.DictLenRequest, ctx: Context
        ) -> api_pb2.DictLenResponse:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            raise AssertionError("unreachable")

    waits = Waits()

    async def run() -> None:
        incoming = call("DictLen", "key")
        task = asyncio.create_task(registry(waits).unary(incoming, b""))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert incoming.interruptible
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert waits.cancelled


# ── failures ────────────────────────────────────────────────────────────────────────────────


def test_an_rpc_without_handler_is_unimplemented_and_named() -> None:
    error = failure(registry(), "DictPop")
    assert error.status == dispatch.UNIMPLEMENTED
    assert "Homeport does not do DictPop yet" in error.message


def test_a_stream_without_handler_is_unimplemented() -> None:
    with pytest.raises(StatusError, match="does not do DictContents yet"):
        asyncio.run(collect(registry().stream(call("DictContents"), b"")))


def test_an_unknown_method_is_unimplemented() -> None:
    assert failure(registry(), "Nothing").status == dispatch.UNIMPLEMENTED


def test_an_undecodable_request_is_invalid() -> None:
    error = failure(registry(Dicts()), "DictLen", b"\xff\xff")
    assert error.status == dispatch.INVALID_ARGUMENT
    assert "DictLenRequest" in error.message


def test_a_platform_error_keeps_its_sentence() -> None:
    error = failure(registry(Dicts(NotFoundError("no such dict"))), "DictLen")
    assert (error.status, error.message) == (dispatch.NOT_FOUND, "no such dict")


def test_a_retry_hint_travels_in_the_status_details() -> None:
    error = failure(registry(Dicts(ExhaustedError("slow down", retry_after_s=1.5))), "DictLen")
    assert error.status == dispatch.RESOURCE_EXHAUSTED
    assert [name for name, _ in error.trailers] == ["grpc-status-details-bin"]


def test_a_defect_is_internal_and_tells_the_log_alone() -> None:
    with structlog.testing.capture_logs() as entries:
        error = failure(registry(Dicts(KeyError("s3cret"))), "DictLen")
    assert error.status == dispatch.INTERNAL
    assert "s3cret" not in error.message
    (entry,) = entries
    assert entry["request_id"] in error.message
    assert isinstance(entry["exc_info"], KeyError)


def test_a_defect_in_a_stream_is_internal_after_what_was_sent() -> None:
    got: list[bytes] = []

    async def run() -> None:
        async for message in registry(Dicts(KeyError("x"))).stream(call("DictContents"), b""):
            got.append(message)

    with pytest.raises(StatusError, match="internal error, request"):
        asyncio.run(run())
    assert len(got) == 1


def test_an_answer_of_the_wrong_kind_is_a_defect() -> None:
    class Confused:
        async def DictLen(self, request: object, ctx: Context) -> Empty:
            return Empty()

    assert failure(registry(Confused()), "DictLen").status == dispatch.INTERNAL


def test_expected_failures_are_logged_without_traceback_or_secrets() -> None:
    with structlog.testing.capture_logs() as entries:
        failure(registry(Dicts(NotFoundError("no such dict"))), "DictLen")
    (entry,) = entries
    assert entry["log_level"] == "warning"
    assert entry["method"] == "DictLen"
    assert entry["exc_info"] is None
    assert "as-1" not in str(entry)


def test_calls_are_logged_at_debug_on_request() -> None:
    with structlog.testing.capture_logs() as entries:
        unary(registry(Dicts()), "DictLen")
        unary(registry(Dicts(), log_calls=True), "DictLen")
    assert [entry["log_level"] for entry in entries] == ["debug"]


# ── who calls ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"x_modal_token_secret": "wrong"}, "does not know the token"),
        ({"x_modal_token_secret": ""}, "no token was sent"),
        ({"x_modal_token_id": ""}, "no token was sent"),
        ({"x_modal_token_id": "", "x_modal_client_type": "3"}, "through the node that runs them"),
        ({"x_modal_token_id": "", "x_modal_refresh_token": "r"}, "does not take OAuth"),
    ],
)
def test_bad_credentials_are_told_what_to_do(metadata: dict[str, str], told: str) -> None:
    dicts = Dicts()
    error = failure(registry(dicts), "DictLen", **metadata)
    assert error.status == dispatch.UNAUTHENTICATED
    assert told in error.message
    assert "homeport env" in error.message
    assert "wrong" not in error.message
    assert not dicts.seen


def test_missing_handlers_do_not_show_to_strangers() -> None:
    error = failure(registry(), "DictPop", x_modal_token_secret="wrong")
    assert error.status == dispatch.UNAUTHENTICATED


@pytest.mark.parametrize("secret", ["", "wrong"])
def test_a_few_methods_need_no_token(secret: str) -> None:
    seen: list[Context] = []

    class Suggests:
        async def CliCommandSuggest(
            self, request: api_pb2.CliCommandSuggestRequest, ctx: Context
        ) -> api_pb2.CliCommandSuggestResponse:
            seen.append(ctx)
            return api_pb2.CliCommandSuggestResponse()

    unary(registry(Suggests()), "CliCommandSuggest", x_modal_token_secret=secret)
    assert isinstance(seen[0].identity, AnonymousIdentity)


def test_clients_before_1_0_are_refused() -> None:
    error = failure(registry(Dicts()), "DictLen", x_modal_client_version="0.77.0")
    assert error.status == dispatch.FAILED_PRECONDITION
    assert "pip install -U modal" in error.message


def test_other_sdks_are_not_judged_by_version() -> None:
    unary(registry(Dicts()), "DictLen", x_modal_client_version="0.5.0", x_modal_client_type="8")


# ── through a node ──────────────────────────────────────────────────────────────────────────


def test_a_forwarded_call_needs_no_token() -> None:
    dicts = Dicts()
    edge = registry(dicts)
    path = "/modal.client.ModalClient/DictLen"
    metadata = {"x-modal-client-type": "3", "x-modal-client-version": "1.0.5"}
    answer, trailers = asyncio.run(
        edge.forwarded_unary(path, TASK, metadata, b"", 2.0, "http://relay")
    )
    assert api_pb2.DictLenResponse.FromString(answer).len == 0
    assert trailers == []
    (ctx,) = dicts.seen
    assert ctx.task is TASK
    assert ctx.http_base == "http://relay"
    assert ctx.timeout_s == 2.0
    assert ctx.environment == "main"


def test_a_forwarded_stream_needs_no_token() -> None:
    path = "/modal.client.ModalClient/DictContents"
    messages = registry(Dicts()).forwarded_stream(path, TASK, {}, b"", None, "")
    assert len(asyncio.run(collect(messages))) == 2


def test_a_forwarded_failure_is_a_status() -> None:
    edge = registry(Dicts(NotFoundError("no such dict")))
    path = "/modal.client.ModalClient/DictLen"
    with pytest.raises(StatusError, match="no such dict"):
        asyncio.run(edge.forwarded_unary(path, TASK, {}, b"", None, ""))


# ── recording ───────────────────────────────────────────────────────────────────────────────


def test_records_what_was_answered_to_whom(tmp_path: Path) -> None:
    file = tmp_path / "recorded.json"
    edge = registry(Dicts(), recorder=Recorder(file))
    unary(edge, "DictLen")
    unary(edge, "DictLen")
    asyncio.run(collect(edge.stream(call("DictContents"), b"")))
    other_process = registry(Dicts(), recorder=Recorder(file))
    unary(other_process, "DictLen", x_modal_client_version="1.0.5")
    failure(other_process, "DictPop")
    assert file.read_text() == '{"DictContents": ["1.6.4"], "DictLen": ["1.0.5", "1.6.4"]}'


@pytest.mark.parametrize("name", sorted(CLIENT_ONLY))
def test_containers_do_not_run_the_installation(name: str) -> None:
    """Whether or not there is a handler, and whatever the request says."""
    edge = registry(Dicts())
    metadata = {"x-modal-client-version": "1.6.4", "x-modal-client-type": "3"}
    with pytest.raises(StatusError) as caught:
        asyncio.run(edge.forwarded_unary(f"{SERVICE}{name}", TASK, metadata, b"", None, ""))
    assert caught.value.status == dispatch.PERMISSION_DENIED
