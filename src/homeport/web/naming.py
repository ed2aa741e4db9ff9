"""Host names of web functions. Pure.

``<workspace>[-<environment's web suffix>]--<label>``, one DNS label in front of the domain. The label
is the user's own, or made of the names of app and function; of an app that is only being tried out
it ends in ``-dev``.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

from homeport.kernel.errors import InvalidError

CHARS_MAX: Final = 63
"""The longest label that DNS allows."""
_KEPT: Final = 56
_HASH: Final = 6
DEV: Final = "dev"
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def slug(text: str) -> str:
    """``text`` as a part of a host name: lower-case letters, digits, single dashes between."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def check_label(label: str) -> None:
    """Raise ``InvalidError`` if a web function may not have the label ``label``."""
    if len(label) > CHARS_MAX or _LABEL.fullmatch(label) is None:
        raise InvalidError(
            f"{label[:70]!r} cannot be the label of a web function: lower-case letters, digits and "
            f"'-' between them are possible, at most {CHARS_MAX}"
        )


def subdomain(
    workspace: str,
    environment_suffix: str,
    *,
    app: str,
    function: str,
    label: str = "",
    dev_suffix: str = "",
) -> str:
    """The first label of a web function's host name.

    ``function`` is the function's name, or ``Class.method``; ``label`` the user's choice in place
    of the names, ``dev_suffix`` is empty for deployed apps. A name that is too long for DNS is cut
    and told apart by six digits of its SHA-256. Raises ``InvalidError`` for a bad label.
    """
    if label:
        check_label(label)
    own = label or "-".join(part for part in (slug(app), slug(function)) if part)
    source = "-".join(part for part in (slug(workspace), environment_suffix) if part)
    name = f"{source}--{own}"
    if dev_suffix:
        name = f"{name}-{dev_suffix}"
    if len(name) <= CHARS_MAX:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{name[:_KEPT]}-{digest[:_HASH]}"


def check_domain(name: str) -> None:
    """Raise ``InvalidError`` if a web function may not have the host name ``name``.

    Names without a dot and addresses are the server's own.
    """
    parts = name.lower().split(".")
    if len(name) > 253 or len(parts) < 2 or parts[-1].isdigit():
        raise InvalidError(f"{name[:70]!r} cannot be the domain of a web function")
    for part in parts:
        check_label(part)


def is_truncated(name: str) -> bool:
    """Whether ``subdomain`` had to cut ``name`` (as far as its length tells)."""
    return len(name) == CHARS_MAX and name[_KEPT] == "-"
