"""Short-lived signed tokens."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from modal._utils.jwt_utils import DecodedJwt
from tests.unit.rpc.rpc_harness import FakeClock

from homeport.kernel.errors import UnauthenticatedError
from homeport.kernel.signing import Signer

KEY = b"k" * 32


def test_says_what_was_signed_and_the_client_can_read_it() -> None:
    clock = FakeClock(1000.0)
    signer = Signer(KEY, clock)
    token = signer.issue("ak-1", "control-plane", 60, scope="ta-1")
    claims = signer.verify(token, "control-plane")
    assert (claims.sub, claims.aud, claims.exp, claims.scope) == (
        "ak-1",
        "control-plane",
        1060,
        "ta-1",
    )
    assert DecodedJwt.decode_without_verification(token).payload["exp"] == 1060


def test_expires() -> None:
    clock = FakeClock()
    signer = Signer(KEY, clock)
    token = signer.issue("ak-1", "a", 60)
    clock.time += 60
    with pytest.raises(UnauthenticatedError, match="expired"):
        signer.verify(token, "a")


def test_refuses_other_purposes_keys_and_changes() -> None:
    signer = Signer(KEY, FakeClock())
    token = signer.issue("ak-1", "a", 60)
    header, payload, signature = token.split(".")
    forged = Signer(b"x" * 32, FakeClock()).issue("ak-1", "a", 60)
    unsigned = f"{header}.{payload}."
    for bad in (
        forged,
        unsigned,
        f"{header}.{payload}x.{signature}",
        "",
        "a.b",
        "ä.ö.ü",
        token + "=",
    ):
        with pytest.raises(UnauthenticatedError, match="not one of this server's"):
            signer.verify(bad, "a")
    with pytest.raises(UnauthenticatedError, match="not one of this server's"):
        signer.verify(token, "b")


def test_the_key_outlives_a_restart_and_is_the_owners(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "signing.key"
    token = Signer.from_file(file, FakeClock()).issue("ak-1", "a", 60)
    assert Signer.from_file(file, FakeClock()).verify(token, "a").sub == "ak-1"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32 bytes"):
        Signer(b"short", FakeClock())
