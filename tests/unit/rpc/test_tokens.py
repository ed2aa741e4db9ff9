"""Tokens: verified from memory, kept as hashes."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.unit.rpc.rpc_harness import FakeClock, database

from homeport.kernel.errors import ConflictError, InvalidError, NotFoundError
from homeport.storage.database import Database
from homeport.storage.operations import OperationLog
from homeport.workspace import credentials, store
from homeport.workspace.credentials import Credentials
from homeport.workspace.tokens import Tokens


def tokens_of(opened: Database, clock: FakeClock | None = None) -> Tokens:
    clock = clock or FakeClock()
    return Tokens(opened, clock, OperationLog(opened, clock))


def test_the_first_start_makes_a_token_and_later_starts_keep_it(tmp_path: Path) -> None:
    async def start() -> Credentials:
        async with database(tmp_path) as opened:
            tokens = tokens_of(opened)
            await tokens.start()
            found = await tokens.ensure_first_token(tmp_path)
            assert tokens.verify(found.token_id, found.token_secret)
            assert tokens.verify_node(found.node_token)
            return found

    assert asyncio.run(start()) == asyncio.run(start())
    mode = credentials.path_in(tmp_path).stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_the_database_has_no_secret(tmp_path: Path) -> None:
    async def run() -> None:
        async with database(tmp_path) as opened:
            tokens = tokens_of(opened)
            found = await tokens.ensure_first_token(tmp_path)
            kept = str(await opened.read(lambda c: c.execute(sa.select(store.tokens)).all()))
            assert found.token_id in kept
            assert found.token_secret not in kept
            assert found.node_token.partition(".")[2] not in kept

    asyncio.run(run())


def test_a_new_database_learns_the_token_people_have(tmp_path: Path) -> None:
    async def start() -> Credentials:
        async with database(tmp_path) as opened:
            tokens = tokens_of(opened)
            await tokens.start()
            return await tokens.ensure_first_token(tmp_path)

    before = asyncio.run(start())
    for file in tmp_path.glob("homeport.db*"):
        file.unlink()
    assert asyncio.run(start()) == before


def test_what_others_wrote_into_the_credentials_stays(tmp_path: Path) -> None:
    credentials.write(tmp_path, Credentials(server_url="http://127.0.0.1:7460"))

    async def run() -> None:
        async with database(tmp_path) as opened:
            await tokens_of(opened).ensure_first_token(tmp_path)

    asyncio.run(run())
    found = credentials.read(tmp_path)
    assert found is not None
    assert found.server_url == "http://127.0.0.1:7460"
    assert found.token_id


def test_damaged_credentials_are_named(tmp_path: Path) -> None:
    credentials.path_in(tmp_path).write_text("token_id = \n")
    with pytest.raises(InvalidError, match=r"credentials\.toml is not valid TOML"):
        credentials.read(tmp_path)
    credentials.path_in(tmp_path).write_text("token_id = 7\n")
    with pytest.raises(InvalidError, match=r"credentials\.toml does not fit"):
        credentials.read(tmp_path)


def test_verification(tmp_path: Path) -> None:
    async def run() -> None:
        async with database(tmp_path) as opened:
            tokens = tokens_of(opened)
            first = await tokens.ensure_first_token(tmp_path)
            token, secret = await tokens.create("laptop")
            assert tokens.verify(token.token_id, secret)
            assert not tokens.verify(token.token_id, first.token_secret)
            assert not tokens.verify("ak-unknown", secret)
            assert not tokens.verify(*first.node_token.split(".", 1))
            assert not tokens.verify_node(f"{token.token_id}.{secret}")
            assert not tokens.verify_node("")
            not_text = f"{first.node_token[:-1]}\udcff"  # as HTTP headers of any bytes are read
            assert not tokens.verify_node(not_text)
            await tokens.disable([token.token_id])
            assert not tokens.verify(token.token_id, secret)
            await tokens.enable([token.token_id])
            assert tokens.verify(token.token_id, secret)
            await tokens.delete(token.token_id)
            assert not tokens.verify(token.token_id, secret)
            with pytest.raises(NotFoundError):
                await tokens.delete(token.token_id)

    asyncio.run(run())


def test_the_last_usable_token_stays(tmp_path: Path) -> None:
    async def run() -> None:
        async with database(tmp_path) as opened:
            tokens = tokens_of(opened)
            first = await tokens.ensure_first_token(tmp_path)
            with pytest.raises(ConflictError, match="last usable token"):
                await tokens.delete(first.token_id)
            other, _ = await tokens.create("laptop")
            with pytest.raises(ConflictError, match="last usable token"):
                await tokens.disable([first.token_id, other.token_id])
            await tokens.disable([first.token_id])
            with pytest.raises(ConflictError, match="last usable token"):
                await tokens.delete(other.token_id)

    asyncio.run(run())


def test_the_last_use_is_noted_now_and_then(tmp_path: Path) -> None:
    async def run() -> None:
        async with database(tmp_path) as opened:
            clock = FakeClock(1000.0)
            tokens = tokens_of(opened, clock)
            token, secret = await tokens.create("laptop")

            async def noted() -> float | None:
                await opened.write(lambda _: None)
                rows = await opened.read(store.load_tokens)
                return rows[0].last_used_at

            assert await noted() is None
            tokens.verify(token.token_id, secret)
            assert await noted() == 1000.0
            clock.time = 1299.0
            tokens.verify(token.token_id, secret)
            assert await noted() == 1000.0
            clock.time = 1301.0
            tokens.verify(token.token_id, secret)
            assert await noted() == 1301.0

    asyncio.run(run())
