"""The server's side of volumes, over its HTTP port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Final

import aiohttp
import msgspec

from homeport.kernel.errors import (
    ConflictError,
    HomeportError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from homeport.link.volumes import ChangesHead, CommitDone, Unframer, VolumeCommit, VolumeEntry

_CHUNK_BYTES: Final = 1024 * 1024
_TRIES: Final = 6
_FIRST_PAUSE_S: Final = 0.2
"""Doubled with every try: about six seconds in all, as long as a server takes to start again."""
_ERRORS: Final[dict[int, type[HomeportError]]] = {
    400: InvalidError,
    404: NotFoundError,
    409: ConflictError,
}
_HEAD: Final = msgspec.msgpack.Decoder(ChangesHead)
_BATCH: Final = msgspec.msgpack.Decoder(list[VolumeEntry])
_HASHES: Final = msgspec.msgpack.Decoder(list[bytes])
_DONE: Final = msgspec.msgpack.Decoder(CommitDone)


class VolumeSource:
    """Trees, commits and blocks of the server. ``http_url`` is empty before the node met it.

    Calls that do not get through are tried again for some seconds. All raise ``NotFoundError``
    for a volume that is gone and ``UnavailableError`` if the server does not answer.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        http_url: Callable[[], str],
        token: Callable[[], str],
    ) -> None:
        self._session = session
        self._http_url = http_url
        self._token = token

    async def changes(
        self, volume_id: str, since: int
    ) -> AsyncGenerator[ChangesHead | list[VolumeEntry], None]:
        """What leads from revision ``since`` to the newest one: the head, then batches."""
        unframer = Unframer()
        is_first = True
        path = f"/_node/volumes/{volume_id}/changes?since={since}"
        try:
            async with self._request("GET", path) as response:
                await _check(response)
                async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                    for value in unframer.feed(chunk):
                        yield _HEAD.decode(value) if is_first else _BATCH.decode(value)
                        is_first = False
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _unreachable(error) from error
        if is_first or not unframer.is_empty:
            raise UnavailableError("the server's answer about a volume ended too early; try again")

    async def missing(self, hashes: Sequence[bytes]) -> set[bytes]:
        """Those of the contents that the server does not have."""
        body = await self._ask("POST", "/_node/blocks/missing", msgspec.msgpack.encode(hashes))
        return set(_HASHES.decode(body))

    async def put_block(self, sha256: bytes, data: bytes) -> None:
        """Store a content."""
        await self._ask("PUT", f"/_node/blocks/{sha256.hex()}", data)

    async def commit(self, volume_id: str, commit: VolumeCommit) -> int:
        """Have the changes recorded; the revision they are in."""
        path = f"/_node/volumes/{volume_id}/commit"
        return _DONE.decode(await self._ask("POST", path, msgspec.msgpack.encode(commit))).revision

    async def _ask(self, method: str, path: str, body: bytes) -> bytes:
        pause_s = _FIRST_PAUSE_S
        for attempt in range(_TRIES):
            try:
                async with self._request(method, path, data=body) as response:
                    await _check(response)
                    return await response.read()
            except (aiohttp.ClientError, TimeoutError, UnavailableError) as error:
                if attempt == _TRIES - 1:
                    raise _unreachable(error) from error
            await asyncio.sleep(pause_s)
            pause_s *= 2
        raise AssertionError("not reached")

    def _request(
        self, method: str, path: str, **options: Any
    ) -> aiohttp.client._RequestContextManager:  # pyright: ignore[reportPrivateUsage]
        url = self._http_url()
        if not url:
            raise UnavailableError("the node has not met its server yet")
        headers = {"Authorization": f"Bearer {self._token()}"}
        return self._session.request(method, url + path, headers=headers, **options)


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    words = (await response.text(errors="replace")).strip()
    kind = _ERRORS.get(response.status, UnavailableError)
    raise kind(words or f"the server answered {response.status}")


def _unreachable(error: Exception) -> UnavailableError:
    if isinstance(error, UnavailableError):
        return error
    return UnavailableError(f"the server cannot be reached for a volume: {error}")
