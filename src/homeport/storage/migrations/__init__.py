"""The schema, as ordered Alembic revisions applied at every start."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Engine

from homeport.kernel.errors import ConflictError
from homeport.storage.dialects import make_comparable


def migrate(engine: Engine) -> None:
    """Bring the schema of ``engine``'s database to the newest revision.

    Raises ``ConflictError`` for a database that a newer Homeport wrote.
    """
    config = _config()
    scripts = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        known = {script.revision for script in scripts.walk_revisions()}
        if current is not None and current not in known:
            raise ConflictError(
                f"the database {engine.url.database} was written by a newer Homeport "
                f"(schema {current}): upgrade Homeport, or use another home"
            )
        if current == scripts.get_current_head():
            return
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        make_comparable(connection)
        connection.commit()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
