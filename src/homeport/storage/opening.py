"""The store of contents that the settings choose."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import sqlalchemy as sa

from homeport.kernel.clock import Clock
from homeport.kernel.errors import ConflictError
from homeport.settings import Settings
from homeport.storage.blobs import FileStore
from homeport.storage.bucket import Bucket
from homeport.storage.buckets import BucketStore
from homeport.storage.catalogue import Catalogue
from homeport.storage.contents import ContentStore
from homeport.storage.database import Database
from homeport.storage.dialects import create_engine


def open_contents(
    settings: Settings, database: Database, clock: Clock, *, key: bytes
) -> ContentStore:
    """The folder, or the bucket if ``blob_store`` names one; ``key`` is the installation's own.

    Raises ``InvalidError`` for settings that no store fits.
    """
    catalogue = Catalogue(database, clock)
    if not settings.blob_store:
        fsync = settings.durability == "power"
        return FileStore(settings.blob_root, fsync=fsync, in_bucket=catalogue.count)
    bucket = Bucket(settings.blob_store, settings.blob_store_options)
    owner = hashlib.blake2b(key, digest_size=16, person=b"bucket owner").hexdigest()
    return BucketStore(settings.blob_root, bucket, catalogue, clock, owner=owner)


def open_database(settings: Settings, *, on_lost: Callable[[], None] | None = None) -> Database:
    """The database that the settings name. Raises ``InvalidError`` if they name none.

    ``on_lost`` is called on the writer's thread when the connection to it ended.
    """
    if settings.database_url:
        return Database(settings.database_url, on_lost=on_lost)
    return Database.sqlite(settings.database_path, durability=settings.durability)


def open_reader(settings: Settings) -> sa.Engine:
    """The database to read in, beside the server. Raises ``ConflictError`` if there is none."""
    if settings.database_url:
        return create_engine(settings.database_url)
    path = settings.database_path
    if not path.exists():
        raise ConflictError(f"there is no database at {path}; was Homeport ever started there?")
    return sa.create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
