"""Whether stores on other machines work: the checks of ``homeport doctor`` for them.

``python -m homeport.storage.probe HOME`` prints them as JSON, as ``homeport.node.probe`` does.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import click
import msgspec

from homeport.kernel.errors import HomeportError
from homeport.settings import Settings, load
from homeport.storage.bucket import Bucket
from homeport.storage.dialects import create_engine, see

_RETRY_S = 5.0


class Check(msgspec.Struct, frozen=True):
    """One thing looked at, as ``homeport doctor`` shows it."""

    name: str
    state: Literal["ok", "failed"]
    found: str
    fix: str = ""


async def probe(settings: Settings) -> list[Check]:
    """All checks of what the settings name."""
    checks: list[Check] = []
    if settings.blob_store:
        checks.append(await _bucket(settings))
    if settings.database_url:
        checks.append(await asyncio.to_thread(_database, settings))
    return checks


def _database(settings: Settings) -> Check:
    name = "database"
    try:
        engine = create_engine(settings.database_url)
        found = see(engine)
    except HomeportError as error:
        return Check(name, "failed", "does not work", error.message)
    return Check(name, "ok", found)


async def _bucket(settings: Settings) -> Check:
    name = "object store"
    try:
        bucket = Bucket(settings.blob_store, settings.blob_store_options, retry_s=_RETRY_S)
        await bucket.check()
    except HomeportError as error:
        return Check(name, "failed", "does not work", error.message)
    return Check(name, "ok", f"{settings.blob_store} can be written, read, listed and deleted in")


@click.command()
@click.argument("home", type=click.Path(path_type=Path))
def main(home: Path) -> None:
    """Print the checks as JSON."""
    click.echo(msgspec.json.encode(asyncio.run(probe(load(home)))))


if __name__ == "__main__":
    main()
