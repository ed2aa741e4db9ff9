"""Housekeeping over real features."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.unit.feature_home import Home, run

from homeport.housekeeping import Housekeeping
from homeport.link.messages import LogEntry
from homeport.mounts.model import RequestedFile


def age(home: Home, sha256: str) -> None:
    os.utime(home.files.path(sha256), (1, 1))


def housekeeping(home: Home) -> Housekeeping:
    return Housekeeping(
        home.files,
        prunable=[home.logs, home.blobs],
        contents=[home.blobs.contents, home.mounts.contents],
        interval_s=0.01,
    )


def test_what_is_referred_to_stays_and_the_rest_goes(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        mounted, unused = await home.files.put_bytes(b"m"), await home.files.put_bytes(b"u")
        await home.mounts.create([RequestedFile("/m", mounted)])
        blob = await home.blobs.get(await home.blobs.write(b"b"))
        home.logs.append("ap-1", "ta-1", "", [LogEntry(1, 1, "old\n")])
        for sha256 in (mounted, unused, blob.sha256):
            age(home, sha256)
        await housekeeping(home).once()
        kept = await home.files.sizes([mounted, unused, blob.sha256])
        assert set(kept) == {mounted, blob.sha256}
        home.clock.offset = 30 * 86400.0
        age(home, blob.sha256)
        await housekeeping(home).once()
        assert not await home.files.has(blob.sha256)

    run(tmp_path, scenario)


def test_no_file_goes_when_its_owner_cannot_be_asked(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        unused = await home.files.put_bytes(b"u")
        age(home, unused)

        async def failing() -> set[str]:
            raise RuntimeError("the database is busy")

        keeper = Housekeeping(home.files, prunable=[], contents=[failing], interval_s=60)
        with pytest.raises(RuntimeError):
            await keeper.once()
        assert await home.files.has(unused)

    run(tmp_path, scenario)


def test_it_runs_by_itself_until_stopped(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        asked = asyncio.Event()

        async def contents() -> set[str]:
            asked.set()
            return set()

        keeper = Housekeeping(home.files, prunable=[], contents=[contents], interval_s=0.01)
        keeper.start()
        await asyncio.wait_for(asked.wait(), 20)
        await keeper.stop()

    run(tmp_path, scenario)
