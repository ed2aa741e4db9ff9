"""Contents as answers: from files by the kernel, from a bucket piece by piece."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog
from aiohttp import web

from homeport.storage.contents import ContentStore, not_stored

log = structlog.get_logger(__name__)

_SEND_BYTES: Final = 1024 * 1024


async def send_content(
    request: web.Request,
    files: ContentStore,
    sha256: str,
    size: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.StreamResponse:
    """Answer with a content, of ``size`` bytes if that is known. Raises ``NotFoundError``.

    A content that turns out to be damaged or cannot be read on ends the connection before its
    last piece: the receiver sees that it is not whole, and asks again.
    """
    headers = {"Content-Type": "application/octet-stream", **(headers or {})}
    path = files.local(sha256)
    if path is not None:
        return web.FileResponse(path, chunk_size=_SEND_BYTES, headers=headers)
    if size is None:
        size = (await files.sizes([sha256])).get(sha256)
        if size is None:
            raise not_stored(sha256)
    response = web.StreamResponse(headers=headers)
    response.content_length = size
    if not size or request.method == "HEAD":
        await response.prepare(request)
        return response
    pieces = aiter(files.stream(sha256))
    first = await anext(pieces)  # what fails by here gets a status
    await response.prepare(request)
    try:
        await response.write(first)
        async for piece in pieces:
            await response.write(piece)
    except ConnectionError:
        raise
    except Exception:
        log.exception("a content could not be sent to its end", sha256=sha256)
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response
