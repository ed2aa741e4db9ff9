"""Networks as people write them."""

from __future__ import annotations

import ipaddress

from homeport.kernel.errors import InvalidError


def network(text: str) -> str:
    """``10.1.2.3/8`` as ``10.0.0.0/8``; an address alone is a network of its own.

    Raises ``InvalidError``.
    """
    try:
        return str(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        raise InvalidError(f"{text[:80]!r} is not a network such as 10.0.0.0/8") from None
