"""Messages of web applications (ASGI) as the client's protocol carries them, and back."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from modal_proto import api_pb2

Message = dict[str, Any]
Headers = list[tuple[bytes, bytes]]


def arguments(scope: Mapping[str, Any]) -> bytes:
    """The arguments of an input that runs an application with ``scope``.

    Containers read them pickled, in any protocol from 4 down, and made of plain values only.
    """
    return pickle.dumps(((dict(scope),), {}), protocol=4)


def request_body(body: bytes, more: bool) -> bytes:
    """A part of a request's body."""
    return _HTTP(http_request=_REQUEST(body=body, more_body=more)).SerializeToString()


def disconnect() -> bytes:
    """The client of a request went away, or has its answer."""
    return _DISCONNECT


def websocket_connect() -> bytes:
    return _CONNECT


def websocket_receive(message: Mapping[str, Any]) -> bytes:
    """What the client sent: text or bytes."""
    text = message.get("text")
    if text is not None:
        part = api_pb2.Asgi.WebsocketReceive(text=text)
    else:
        part = api_pb2.Asgi.WebsocketReceive(bytes=message.get("bytes") or b"")
    return _HTTP(websocket_receive=part).SerializeToString()


def websocket_disconnect(code: int) -> bytes:
    part = api_pb2.Asgi.WebsocketDisconnect(code=code)
    return _HTTP(websocket_disconnect=part).SerializeToString()


def answer(data: bytes) -> Message:
    """What an application said; ``{}`` if it is nothing a server acts on."""
    message = _HTTP.FromString(data)
    kind = message.WhichOneof("type")
    read = _READERS.get(kind or "")
    return read(getattr(message, kind)) if read is not None and kind else {}


def fault(message: Message) -> str:
    """Why the begin of an answer cannot be sent as it is; empty if it can.

    A line break in a header would be the begin of another one, or of another answer.
    """
    if not 200 <= message["status"] <= 599:
        return f"The application answered with the status {message['status']}, which is none."
    for name, value in message["headers"]:
        if _NAME.fullmatch(name) is None:
            return f"The application answered with a header named {name!r}, which is no name."
        if _NOT_IN_VALUES.search(value) is not None:
            return (
                f"The application answered with a header {name!r} that has line breaks or the like."
            )
        if name.lower() == b"content-length" and not value.strip().isdigit():
            return f"The application answered with the Content-Length {value!r}."
    return ""


_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_VALUES: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def _start(part: Any) -> Message:
    return {
        "type": "http.response.start",
        "status": part.status,
        "headers": _pairs(part.headers),
        "trailers": part.trailers,
    }


def _body(part: Any) -> Message:
    return {"type": "http.response.body", "body": part.body, "more_body": part.more_body}


def _trailers(part: Any) -> Message:
    return {
        "type": "http.response.trailers",
        "headers": _pairs(part.headers),
        "more_trailers": part.more_trailers,
    }


def _accept(part: Any) -> Message:
    message: Message = {"type": "websocket.accept", "headers": _pairs(part.headers)}
    if part.HasField("subprotocol"):
        message["subprotocol"] = part.subprotocol
    return message


def _send(part: Any) -> Message:
    if part.WhichOneof("content") == "text":
        return {"type": "websocket.send", "text": part.text}
    return {"type": "websocket.send", "bytes": part.bytes}


def _close(part: Any) -> Message:
    code = part.code if part.HasField("code") else 1000
    return {"type": "websocket.close", "code": code, "reason": part.reason}


def _pairs(flat: Iterable[bytes]) -> Headers:
    """Headers are names and values in turn."""
    values = iter(flat)
    return list(zip(values, values, strict=True))


_HTTP = api_pb2.Asgi
_REQUEST = api_pb2.Asgi.HttpRequest
_DISCONNECT = _HTTP(http_disconnect=api_pb2.Asgi.HttpDisconnect()).SerializeToString()
_CONNECT = _HTTP(websocket_connect=api_pb2.Asgi.WebsocketConnect()).SerializeToString()
_READERS = {
    "http_response_start": _start,
    "http_response_body": _body,
    "http_response_trailers": _trailers,
    "websocket_accept": _accept,
    "websocket_send": _send,
    "websocket_close": _close,
}
