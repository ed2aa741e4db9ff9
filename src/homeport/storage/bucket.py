"""A bucket of an object store (S3, GCS, Azure) as the server uses it: named bytes, errors in words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from homeport.kernel import ids
from homeport.kernel.errors import InvalidError, UnavailableError

PART_BYTES: Final = 8 * 1024 * 1024
"""Larger objects are sent in parts of this size (or more: a store takes 10,000 parts)."""
PARTS_AT_ONCE: Final = 4
_PARTS_MAX: Final = 9_000
_LIST_ITEMS: Final = 1_000
_SCHEMES: Final = {
    **{"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"},
    **{"az": "az", "azure": "az", "abfs": "az", "abfss": "az"},
}
_URL: Final = re.compile(r"^(\w+)://([^/?#@\s]+)(/[^?#\s]*)?$")
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_NO_CREDENTIALS: Final = ("169.254.169.254", "metadata.google.internal", "missing credentials")
_REFUSED: Final = re.compile(
    r"\b(401|403)\b|InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied|AuthenticationFailed"
)
_NO_BUCKET: Final = re.compile(r"NoSuchBucket|ContainerNotFound|specified bucket does not exist")
_CREDENTIALS: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS (the path of a service account's key)",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""Variables of the server's environment that an installation without cloud identity needs."""


class StoredObject(msgspec.Struct, frozen=True):
    """One object of a listing; ``modified_at`` in Unix seconds by the store's clock."""

    name: str
    size: int
    modified_at: float


class Bucket:
    """The objects below the URL of a bucket and prefix, as ``s3://bucket/prefix``.

    ``options`` are obstore's own, such as ``endpoint`` and ``region``; credentials come from them
    or from the environment under the vendors' names. A request that fails is repeated for
    ``retry_s`` seconds, then it raises ``UnavailableError`` that says what to do.
    """

    def __init__(self, url: str, options: Mapping[str, str], *, retry_s: float = 30.0) -> None:
        match = _URL.match(url)
        if match is None or match[1] not in _SCHEMES:
            raise InvalidError(
                f"blob_store is {url!r}; it has to be s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or "
                "az://CONTAINER/PREFIX (the prefix may be missing), or empty for a folder"
            )
        self.url = url
        self._kind = _SCHEMES[match[1]]
        self._library: Any = None  # whose types say less than ours
        self._store = self._open(url, options, retry_s)

    def _open(self, url: str, options: Mapping[str, str], retry_s: float) -> Any:
        try:
            import obstore
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError:
            raise InvalidError(
                f"blob_store is {url}, which needs obstore: pip install 'homeport[buckets]'"
            ) from None
        self._library = obstore
        open_store: Callable[..., Any] = from_url
        # also inside of the JSON that is a key of Google's
        http = any("http://" in value for value in options.values())
        try:
            return open_store(
                url,
                config=dict(options),
                client_options={
                    "allow_http": http,
                    "connect_timeout": timedelta(seconds=5),
                    "timeout": timedelta(seconds=120),
                },
                retry_config={
                    "max_retries": 100,
                    "retry_timeout": timedelta(seconds=retry_s),
                    "backoff": {
                        "init_backoff": timedelta(milliseconds=100),
                        "max_backoff": timedelta(seconds=5),
                        "base": 2,
                    },
                },
            )
        except (BaseError, ValueError, TypeError) as error:
            raise InvalidError(
                f"blob_store {url} cannot be used with blob_store_options "
                f"{', '.join(sorted(options)) or '(none)'}: {_words(error)}"
            ) from None

    # ── objects ─────────────────────────────────────────────────────────────────────────────

    async def get(self, name: str) -> bytes | None:
        """A small object whole; ``None`` if there is none."""
        try:
            with self._errors("read"):
                result = await self._library.get_async(self._store, name)
                return bytes(await result.bytes_async())
        except FileNotFoundError:
            return None

    async def get_range(self, name: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``, all of them there. Raises ``FileNotFoundError``."""
        with self._errors("read"):
            return bytes(
                await self._library.get_range_async(self._store, name, start=start, length=length)
            )

    async def put(self, name: str, source: bytes | Path, size: int) -> None:
        """Store an object of ``size`` bytes, whole or not at all."""
        part = max(PART_BYTES, -(-size // _PARTS_MAX))
        with self._errors("write"):
            await self._library.put_async(
                self._store,
                name,
                source,
                use_multipart=size > part,
                chunk_size=part,
                max_concurrency=PARTS_AT_ONCE,
            )

    async def delete(self, names: Sequence[str]) -> None:
        """Remove objects; those that are not there do not matter."""
        try:
            with self._errors("delete"):
                await self._library.delete_async(self._store, list(names))
        except FileNotFoundError:
            if len(names) > 1:
                for name in names:
                    await self.delete([name])

    async def list(self) -> AsyncIterator[list[StoredObject]]:
        """All objects, in batches."""
        batches = aiter(self._library.list(self._store, chunk_size=_LIST_ITEMS))
        while True:
            with self._errors("list"):
                batch = await anext(batches, None)
            if batch is None:
                return
            yield [
                StoredObject(item["path"], item["size"], item["last_modified"].timestamp())
                for item in batch
            ]

    # ── for programs that wait ──────────────────────────────────────────────────────────────

    def sizes(self) -> dict[str, int]:
        """Names and sizes of all objects."""
        with self._errors("list"):
            return {
                item["path"]: item["size"]
                for batch in self._library.list(self._store, chunk_size=_LIST_ITEMS)
                for item in batch
            }

    def size(self, name: str) -> int | None:
        """Size of one object in bytes; ``None`` if it is not there."""
        try:
            with self._errors("read"):
                return self._library.head(self._store, name)["size"]
        except FileNotFoundError:
            return None

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """The bytes of an object of that size."""
        for start in range(0, size, PART_BYTES):
            length = min(PART_BYTES, size - start)
            with self._errors("read"):
                yield bytes(self._library.get_range(self._store, name, start=start, length=length))

    # ── whether it works ────────────────────────────────────────────────────────────────────

    async def check(self) -> None:
        """See that objects can be written, read, listed and deleted.

        Raises ``UnavailableError`` with what is to be done.
        """
        name = f"probe/{ids.new('pr')}"
        await self.put(name, b"homeport", 8)
        try:
            if await self.get(name) != b"homeport":
                raise UnavailableError(f"{self.url} does not give back what was written to it")
            async for _ in self.list():
                break
        finally:
            await self.delete([name])

    @contextlib.contextmanager
    def _errors(self, what: str) -> Generator[None]:
        """The errors of the library as ours; ``FileNotFoundError`` for what is not there."""
        from obstore.exceptions import BaseError

        try:
            yield
        except (BaseError, OSError, ValueError, TimeoutError) as error:
            text = str(error)
            missing = isinstance(error, FileNotFoundError)
            if missing and what == "read" and not _NO_BUCKET.search(text):
                raise FileNotFoundError(text) from None
            if missing and what == "delete" and not _NO_BUCKET.search(text):
                raise FileNotFoundError(text) from None
            raise UnavailableError(self._explained(what, text)) from None

    def _explained(self, what: str, text: str) -> str:
        if any(mark in text for mark in _NO_CREDENTIALS):
            return (
                f"there are no credentials for {self.url}: set {_CREDENTIALS[self._kind]} in the "
                "environment of the Homeport server, or the same in blob_store_options, and start "
                "it again"
            )
        if _NO_BUCKET.search(text):
            return (
                f"there is no bucket for {self.url}: create it, or correct blob_store in the "
                f"server's settings ({_words(text)})"
            )
        if _REFUSED.search(text):
            return (
                f"{self.url} refused the Homeport server's credentials when it wanted to {what}: "
                f"check {_CREDENTIALS[self._kind]} in its environment or in blob_store_options, and "
                f"that they may read, write, list and delete there ({_words(text)})"
            )
        return (
            f"the Homeport server could not {what} in {self.url}: it is tried again with the next "
            f"request; see that the store can be reached from the server ({_words(text)})"
        )


def _words(error: object) -> str:
    """The first line of what a library says and the store's code, without a dump of its insides."""
    whole = str(error).strip()
    text = whole.partition("\n")[0].partition(": <?xml")[0]
    code = _CODE.search(whole)
    text = text if len(text) <= 400 else text[:400] + "…"
    return f"{text}: {code[1]}" if code and code[1] not in text else text
