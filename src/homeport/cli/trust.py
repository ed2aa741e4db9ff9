"""Has programs trust the installation's own certificate authority beside the usual ones."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import certifi

from homeport.kernel.files import CERTIFICATE_FILE

BUNDLE_FILE: Final = "ca-bundle.pem"
_OPENSSL: Final = "SSL_CERT_FILE"
_VARIABLES: Final = (_OPENSSL, "REQUESTS_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
"""What OpenSSL (and httpx, aiohttp, curl), requests, and the JavaScript client's gRPC look at."""


def trust_variables(home: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables with which programs trust this home's tunnels and command routers.

    They name a file with the authorities trusted so far, those of the user's own
    ``SSL_CERT_FILE`` if that is set, and this home's. Empty before the first start.
    """
    try:
        own = (home / CERTIFICATE_FILE).read_bytes()
    except OSError:
        return {}
    bundle = home / BUNDLE_FILE
    wanted = _others(bundle, environ) + b"\n" + own
    try:
        if not bundle.exists() or bundle.read_bytes() != wanted:
            fresh = bundle.with_suffix(".new")
            fresh.write_bytes(wanted)
            fresh.replace(bundle)
    except OSError:  # somebody else's home: what is there has to do
        if not bundle.exists():
            return {}
    return dict.fromkeys(_VARIABLES, str(bundle))


def _others(bundle: Path, environ: Mapping[str, str]) -> bytes:
    """The authorities trusted without us."""
    for name in (environ.get(_OPENSSL, ""), ssl.get_default_verify_paths().cafile, certifi.where()):
        if name and Path(name) != bundle:
            try:
                return Path(name).read_bytes()
            except OSError:
                continue
    return b""
