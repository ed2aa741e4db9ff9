"""Signed URLs: the data plane carries no credentials, so each URL is a capability."""

from __future__ import annotations

from homeport.blobs.model import Grant
from homeport.kernel.grants import GrantSigner


class UrlSigner(GrantSigner[Grant]):
    """Turns grants into unforgeable URL tokens with the installation's key, and back."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key, Grant)

    def url(self, base: str, grant: Grant) -> str:
        """The URL below ``base`` (no trailing slash) that carries ``grant``."""
        return f"{base}/blob/{grant.blob_id}?t={self.token(grant)}"
