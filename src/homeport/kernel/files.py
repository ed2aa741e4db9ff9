"""Names of files in a home that several parts know."""

from __future__ import annotations

from typing import Final

CERTIFICATE_FILE: Final = "ca.pem"
"""What a client is told to trust (``SSL_CERT_FILE``)."""
