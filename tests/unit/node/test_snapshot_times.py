"""How long a snapshot of a sandbox is kept."""

from __future__ import annotations

import pytest

from homeport.kernel.errors import InvalidError
from homeport.node.router.rpc import snapshot_ttl_s


@pytest.mark.parametrize(("asked", "kept"), [(-1, 0.0), (60, 60.0), (0, 30 * 86400.0)])
def test_times(asked: int, kept: float) -> None:
    assert snapshot_ttl_s(asked) == kept


def test_negative_times_are_refused() -> None:
    with pytest.raises(InvalidError):
        snapshot_ttl_s(-2)
