"""Errors as HTTP answers."""

from __future__ import annotations

import errno
import html
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from aiohttp import web

from homeport.kernel.errors import Code, HomeportError

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

STATUS: Final = {
    Code.INVALID: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.CONFLICT: 409,
    Code.EXHAUSTED: 429,
    Code.INTERNAL: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE: 504,
}
_INSUFFICIENT_STORAGE: Final = 507


@web.middleware
async def errors_to_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Our errors by their code, unknown paths as a page, anything else as a bare 500."""
    try:
        return await handler(request)
    except HomeportError as error:
        return _answer(request, STATUS[error.code], error.message)
    except web.HTTPNotFound:
        return _answer(request, 404, f"There is nothing at {request.path}.")
    except web.HTTPException:
        raise
    except ConnectionError:  # the client went away: nobody reads an answer
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _answer(request, _INSUFFICIENT_STORAGE, "The server's disk is full.")
        return _defect(request)
    except Exception:
        return _defect(request)


def _defect(request: web.Request) -> web.Response:
    log.exception("request failed", method=request.method, path=request.path)
    return _answer(request, 500, "The server failed; its log says why.")


def _answer(request: web.Request, status: int, message: str) -> web.Response:
    kind, body = error_body(status, message, request.headers.get("Accept", ""))
    return web.Response(status=status, body=body, headers={"Content-Type": kind.decode()})


def error_body(status: int, message: str, accept: str) -> tuple[bytes, bytes]:
    """An error's content type and text, as a page for those whose ``accept`` says they like one."""
    if "text/html" not in accept:
        return b"text/plain; charset=utf-8", f"{message}\n".encode()
    lines = html.escape(message).replace("\n", "<br>")
    return b"text/html; charset=utf-8", _PAGE.format(status=status, message=lines).encode()


_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{status} · Homeport</title>
<body style="font: 16px system-ui; margin: 4rem auto; max-width: 40rem">
<h1 style="font-size: 1.2rem">{status}</h1><p>{message}</p></body></html>
"""
