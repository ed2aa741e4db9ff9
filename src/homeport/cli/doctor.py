"""``homeport doctor``: what the node's probe found, for people and as JSON."""

from __future__ import annotations

from homeport.settings import Settings


def examine(settings: Settings, *, as_json: bool) -> tuple[str, bool]:
    raise NotImplementedError
