"""The server is killed again and again while blobs and secrets are written: none is lost or half."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.chaos.killing import KILLS, kill_under_load
from tests.conformance.harness.bare import BareServer

from homeport.secrets.crypt import SecretBox
from homeport.secrets.store import secrets
from homeport.storage.keyfile import read_or_create

LOAD = Path(__file__).with_name("content_load.py")


def values_of(server: BareServer) -> dict[str, dict[str, str]]:
    """All named secrets as the database has them; fails if one cannot be decrypted."""
    box = SecretBox(read_or_create(server.home / "secret.key"))
    engine = sa.create_engine(f"sqlite:///{server.home / 'homeport.db'}")
    try:
        with engine.connect() as connection:
            rows = connection.execute(sa.select(secrets)).all()
    finally:
        engine.dispose()
    found = {row.name: box.open(row.id, row.sealed) for row in rows}
    assert {row.name: sorted(row.key_names) for row in rows} == {
        name: sorted(values) for name, values in found.items()
    }
    return found


@pytest.mark.timeout(240 + 15 * KILLS)
def test_kills_while_blobs_and_secrets_are_written(tmp_path: Path) -> None:
    left: list[dict[str, dict[str, str]]] = []
    seen, _ = kill_under_load(
        tmp_path,
        LOAD,
        pauses_s=(0.3, 3.0),
        end_s=180,
        check=lambda server: left.append(values_of(server)),
    )
    assert seen["wrong"] == []
    assert seen["done"]["blob"] > KILLS
    assert all(seen["done"].values()), seen["done"]
    assert left[-1] == seen["secrets"]
