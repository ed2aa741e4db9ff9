"""What is said about RPCs that Homeport does not answer: the name, and what to do instead."""

from __future__ import annotations

from typing import Final

_INSTEAD: Final[dict[str, str]] = {
    "TokenFlow": "run `homeport env` on the server's machine for a token",
    "Endpoint": "managed endpoints are a service of the client's vendor; deploy an app instead",
    "Domain": "put a reverse proxy with your domain in front of the server",
    "Proxy": "containers leave through their node's network",
    "WorkspaceBilling": "on your own machines nothing is billed",
    "EnvironmentBilling": "on your own machines nothing is billed",
}
"""By the beginning of the RPC's name; the longest that fits counts."""


def missing_sentence(method: str) -> str:
    """The message of UNIMPLEMENTED for ``method``."""
    fitting = [prefix for prefix in _INSTEAD if method.startswith(prefix)]
    hint = _INSTEAD[max(fitting, key=len)] if fitting else "see docs/coverage.md for what it does"
    return f"Homeport does not do {method} yet ({hint})"
