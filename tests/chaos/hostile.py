"""Requests that no client would send: built from the descriptors, structurally valid or not.

Each is made from its own seed, so one is repeated without those before it, as far as the ids that
it names were not made by them.
"""

from __future__ import annotations

import math
import pickle
import random
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

if TYPE_CHECKING:
    from homeport.rpc.methods import Method

_ID: Final = re.compile(r"[a-z]{2}-[0-9A-Za-z]{16,32}")
_KINDS: Final = {
    "app": "ap",
    "function": "fu",
    "class": "cs",
    "call": "fc",
    "input": "in",
    "image": "im",
    "mount": "mo",
    "secret": "st",
    "environment": "en",
    "blob": "bl",
    "task": "ta",
    "dict": "di",
    "queue": "qu",
    "volume": "vo",
    "shared_volume": "sv",
    "sandbox": "sb",
    "persistent_sandbox": "ps",
    "snapshot": "sn",
    "object": "ap",
}
"""Which ids fit a field, by the last of these words in its name."""
_WORD: Final = re.compile("|".join(sorted(_KINDS, key=len, reverse=True)))
_NAMES: Final = (
    "one",
    "two",
    "three.*",
    "f",
    "C.*",
    "data.bin",
    "folder/data.bin",
    "_-.",
    "a" * 64,
)
_HOSTILE_TEXTS: Final = (
    "",
    " ",
    "\0",
    "a\0b",
    "\n\r\t\x1b[2J",
    "../../../../etc/passwd",
    "/",
    "//",
    ".",
    "..",
    "a/../..",
    "~",
    "%00%n%s%p",
    "' OR 1=1 --",
    '"; DROP TABLE apps; --',
    "<script>alert(1)</script>",
    "$(reboot)`reboot`",
    "🧨" * 20,
    "\u202egnp.exe",
    "e\u0301\u0301\u0301",
    "ß" * 300,
    "\U0010ffff\ufeff\ufffe",
    "-1",
    "1e999",
    "NaN",
    "ap-",
    "ap-0000000000000000000000",
    "fu-" + "x" * 1000,
    "localhost:99999999",
    "http://[::1",
    "https://a@[/b?c#d",
    "*",
    "{}",
    "x" * 5_000,
)
_HOSTILE_BYTES: Final = (
    b"",
    b"\0",
    bytes(65),
    pickle.dumps(((), {"a": 2**70, "b": {1}})),
    pickle.dumps((("a",), {1: 2, "b": object})),
    b"\x80\x04\x8d" + b"\xff" * 8,
)
_INTEGERS: Final = (
    0,
    1,
    -1,
    2,
    255,
    256,
    65536,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**63 - 1,
    -(2**63),
)
_FLOATS: Final = (0.0, -0.0, -1.0, 0.05, 1e-308, 1e308, -1e308, math.inf, -math.inf, math.nan)
_LIMITS: Final = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SFIXED64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
_DEPTH_MAX: Final = 5
_IDS_MAX: Final = 40


def _names_id(field: FieldDescriptor) -> bool:
    return field.name.endswith("_id") and not field.name.startswith(("existing", "last_entry"))


class Pool:
    """Ids of what exists, by kind: the answers of earlier requests name them."""

    def __init__(self, never: Mapping[str, str]) -> None:
        self._ids: dict[str, list[str]] = {}
        self._never = set(never.values())

    def take(self, message: Message) -> None:
        """Remember the ids in an answer."""
        for found in _ID.findall(str(message)):
            known = self._ids.setdefault(found[:2], [])
            if found not in known and found not in self._never:
                known.append(found)
                del known[:-_IDS_MAX]

    def one(self, choice: random.Random, kind: str) -> str:
        """An id of ``kind``, or a made-up one if there is none yet."""
        known = self._ids.get(kind)
        return choice.choice(known) if known else f"{kind}-{'0' * 22}"

    def any(self, choice: random.Random) -> str:
        """An id of any kind."""
        return self.one(choice, choice.choice([*self._ids, "ap"]))


class Hostile:
    """Makes the requests. ``poll_s`` bounds most of the waits that they ask for."""

    def __init__(self, seed: str, pool: Pool, *, poll_s: float) -> None:
        self._choice = random.Random(seed)
        self._pool = pool
        self._poll_s = poll_s

    def request(self, method: Method, sound: Message | None = None) -> bytes:
        """One request of ``method``, as bytes; some are a ``sound`` one with changes."""
        choice = self._choice
        if choice.random() < 0.03:
            return b""
        if choice.random() < 0.04:
            return choice.randbytes(choice.choice((1, 5, 60, 2000)))
        message = method.request()
        wild = choice.choice((0.0, 0.0, 0.03, 0.1, 0.5))
        dense = choice.choice((0.11, 0.25, 0.6, 0.9))
        if sound is not None and choice.random() < 0.5:
            message.CopyFrom(sound)
            dense = choice.choice((0.0, 0.03, 0.1))
        self._fill(message, wild, dense, 0)
        data = message.SerializeToString()
        return self._damaged(data) if data and choice.random() < 0.06 else data

    def _damaged(self, data: bytes) -> bytes:
        choice = self._choice
        if choice.random() < 0.4:
            return data[: choice.randrange(len(data))]
        damaged = bytearray(data)
        for _ in range(choice.randint(1, 4)):
            at = choice.randrange(len(damaged))
            if choice.random() < 0.5:
                damaged[at] = choice.randrange(256)
            else:
                damaged[at:at] = damaged[:at][-20:] + choice.randbytes(2)
        return bytes(damaged)

    def _fill(self, message: Message, wild: float, dense: float, depth: int) -> None:
        for field in message.DESCRIPTOR.fields:
            # what is named first is what the request is about
            chance = dense / (1 + depth / 2)
            if not depth and dense > 0.1 and _names_id(field):
                chance = 0.9
            if self._choice.random() > chance:
                continue
            if field.message_type is not None and depth >= _DEPTH_MAX:
                continue
            self._set(message, field, wild, dense, depth)

    def _set(
        self, message: Any, field: FieldDescriptor, wild: float, dense: float, depth: int
    ) -> None:
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            values = getattr(message, field.name)
            key, value = kind.fields_by_name["key"], kind.fields_by_name["value"]
            for _ in range(self._choice.choice((1, 1, 3))):
                if value.message_type is not None:
                    self._fill(values[self._scalar(key, wild)], wild, dense, depth + 1)
                else:
                    values[self._scalar(key, wild)] = self._scalar(value, wild, field.name)
        elif field.is_repeated:
            values = getattr(message, field.name)
            for _ in range(self._count(wild)):
                if kind is not None:
                    self._fill(values.add(), wild, dense, depth + 1)
                else:
                    values.append(self._scalar(field, wild))
        elif kind is not None:
            part = getattr(message, field.name)
            part.SetInParent()
            self._fill(part, wild, dense, depth + 1)
        else:
            setattr(message, field.name, self._scalar(field, wild))

    def _count(self, wild: float) -> int:
        if self._choice.random() < wild / 20:
            return 300
        return self._choice.choice((1, 1, 2, 4))

    def _scalar(self, field: FieldDescriptor, wild: float, name: str = "") -> Any:
        choice = self._choice
        is_wild = choice.random() < wild
        name = name or field.name
        if field.type == FieldDescriptor.TYPE_BOOL:
            return choice.random() < 0.5
        if field.type == FieldDescriptor.TYPE_STRING:
            return self._wild_text() if is_wild else self._text(name)
        if field.type == FieldDescriptor.TYPE_BYTES:
            if is_wild:
                return choice.choice((*_HOSTILE_BYTES, choice.randbytes(300_000)))
            return choice.choice((b"", b"key", b"value", choice.randbytes(32)))
        if field.type == FieldDescriptor.TYPE_ENUM:
            if is_wild:
                return choice.choice((-1, 77, 2**31 - 1, -(2**31)))
            return choice.choice(field.enum_type.values).number
        if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
            if is_wild:
                return choice.choice(_FLOATS)
            return choice.uniform(0, self._poll_s if "timeout" in name else 100)
        low, high = _LIMITS[field.type]
        if is_wild:
            return min(max(choice.choice(_INTEGERS), low), high)
        return choice.choice((0, 0, 1) if "timeout" in name else (0, 1, 1, 2, 7, 100))

    def _text(self, name: str) -> str:
        choice = self._choice
        words = _WORD.findall(name)
        if name.endswith(("id", "ids", "jwt", "jwts")) and words:
            return self._pool.one(choice, _KINDS[words[-1]])
        if "environment" in name:
            return choice.choice(("", "", "", "main", "other", "one"))
        if "sha256" in name or "hash" in name or "digest" in name:
            return choice.choice(("0", "ab", "f")) * 64
        if "version" in name:
            return choice.choice(("2024.10", "2025.06", ""))
        if "url" in name:
            return choice.choice(("http://one.localhost/a?b", "one.localhost", "https://[::1]:1/"))
        if "path" in name:
            return choice.choice(("a", "/a/b", "a/b/c", "/", "/root/x"))
        return choice.choice(_NAMES)

    def _wild_text(self) -> str:
        choice = self._choice
        kind = choice.random()
        if kind < 0.3:
            return self._pool.any(choice)
        if kind < 0.32:
            return choice.choice("a/é\0") * 400_000
        return choice.choice(_HOSTILE_TEXTS)

    def metadata(self, sound: Mapping[str, str]) -> dict[str, str]:
        """Metadata of one request; now and then it is not what a client says."""
        choice = self._choice
        metadata = dict(sound)
        key = choice.random()
        if key < 0.6:
            metadata["x-idempotency-key"] = f"{choice.getrandbits(64):x}"
        elif key < 0.63:
            metadata["x-idempotency-key"] = choice.choice(("same", "x" * 3000, "%00", "~"))
        if choice.random() < 0.03:
            metadata["x-modal-client-version"] = choice.choice(
                ("", "0.0.1", "1.6", "1.6.4.dev7", "999.0.0", "one", "1.-6.4", "x" * 4000)
            )
        if choice.random() < 0.03:
            metadata["x-modal-client-type"] = choice.choice(("", "0", "3", "8", "-1", "99", "x"))
        if choice.random() < 0.02:
            metadata["x-forwarded-proto"] = choice.choice(("https", "gopher", "-"))
        return {name: value for name, value in metadata.items() if value}
