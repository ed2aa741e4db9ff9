"""What a token is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["client", "node"]


@dataclass(slots=True)
class Token:
    """One token, without its secret. Times are Unix seconds."""

    token_id: str
    kind: Kind
    name: str
    secret_hash: bytes
    created_at: float
    disabled_at: float | None = None
    last_used_at: float | None = None
