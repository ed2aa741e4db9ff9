"""Blobs and the rules of their transfer."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from typing import Final, Literal

import msgspec

from homeport.kernel.errors import InvalidError

BLOB_BYTES_MAX: Final = 1 << 40
"""Largest blob, 1 TiB: bounds what one request can ask of the disk."""
SINGLE_BYTES_MAX: Final = 1 << 30
"""Above this the client sends a placeholder instead of the MD5 and reads parts from disk."""
PART_BYTES: Final = 512 * 1024 * 1024
"""Part length of larger blobs: a failed part is sent again as a whole."""
PARTS_MAX: Final = 500
"""Most parts of a blob: the client opens the file once a part."""
URL_LIFETIME_S: Final = 86400.0
"""Clients get all URLs of a big transfer at once and may use the last one hours later."""


class Blob(msgspec.Struct, frozen=True):
    """A complete blob. ``created_at`` and ``expires_at`` are Unix seconds."""

    id: str
    sha256: str
    size: int
    created_at: float
    expires_at: float


class Grant(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What a signed URL allows; it is its own proof, so nothing is stored before bytes arrive.

    ``put`` sends the whole blob, ``part`` the part number ``part`` (from 1) of ``part_size``
    bytes, ``complete`` assembles the parts, ``get`` reads. ``expires_at`` is in Unix seconds.
    """

    action: Literal["put", "part", "complete", "get"]
    blob_id: str
    expires_at: float
    size: int = 0
    sha256: str = ""
    md5: str = ""
    part: int = 0
    part_size: int = 0

    @property
    def parts(self) -> int:
        """How many parts the blob has."""
        return max(1, -(-self.size // self.part_size))

    @property
    def body_size(self) -> int:
        """Bytes the body of this request must have."""
        if self.action == "put":
            return self.size
        return min(self.part_size, self.size - (self.part - 1) * self.part_size)


class Upload(msgspec.Struct, frozen=True):
    """Where to send a new blob: one ``url``, or ``part_urls`` and then ``completion_url``."""

    blob_id: str
    url: str = ""
    part_size: int = 0
    part_urls: list[str] = []
    completion_url: str = ""


def part_size(size: int) -> int:
    """Part length for a blob of ``size`` bytes: few parts, and one for payloads in memory."""
    if size <= SINGLE_BYTES_MAX:
        return max(1, size)
    return max(PART_BYTES, -(-size // PARTS_MAX))


def single_part_allowed(host: str, client_version: str) -> bool:
    """Whether a client of that version accepts a single-part upload URL on ``host``.

    Clients refuse hosts they do not know before sending anything; URLs of multipart uploads are
    exempt. Up to 1.3 they know ``localhost`` and ``127.0.0.1``, from 1.4.3 on every loopback or
    private IPv4 literal; never a DNS name or an IPv6 literal.
    """
    if host in ("localhost", "127.0.0.1"):
        return True
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    private = address.is_loopback or any(address in network for network in _PRIVATE)
    return private and _version(client_version) >= (1, 4, 3)


_PRIVATE: Final = tuple(
    ipaddress.IPv4Network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
)


def _version(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for piece in text.split(".")[:3]:
        digits = "".join(character for character in piece if character.isdigit())
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def hex_of_base64(text: str, length: int, what: str) -> str:
    """The ``length`` bytes that ``text`` encodes, in hex. Raises ``InvalidError``."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != length:
        raise InvalidError(f"{what} is not {length} bytes in base64: {text[:80]!r}")
    return data.hex()


def is_placeholder_md5(md5_hex: str) -> bool:
    """Whether the client did not compute the MD5 (files over 1 GiB)."""
    return md5_hex == "baadbaadbaadbaadbaadbaadbaadbaad"
