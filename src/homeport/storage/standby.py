"""Waiting until no server works on a database: ``python -m homeport.storage.standby HOME``.

A process of its own, so that ``homeport up`` loads no database driver. It ends with ``FREE`` if no
server had the database, and with ``LEFT`` if one had it and gave it up.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

import click

from homeport.kernel.errors import HomeportError, InvalidError, UnavailableError
from homeport.settings import Settings, load
from homeport.storage.dialects import await_unlocked, create_engine, lock_holder
from homeport.storage.standing import FREE, LEFT, NEWS

GRACE_S: Final = 5.0
"""A server that crashed is started again where it ran: it has that long to be the first."""
_RETRY_S: Final = 5.0
"""Between attempts to reach a database that is away."""


def stand_by(settings: Settings, *, grace_s: float = GRACE_S) -> bool:
    """Return once no server works on the database (blocking); whether one did before.

    Raises ``InvalidError`` if the settings name no database that servers can share.
    """
    if not settings.database_url:
        raise InvalidError(
            "standby needs a database that several servers reach: set database_url to a PostgreSQL"
        )
    engine = create_engine(settings.database_url)
    waited, told = False, ""
    try:
        while True:
            try:
                holder = lock_holder(engine)
                if holder is None:
                    return waited
                line = f"standing by: another server has the database{holder}"
                if told != line:
                    _say(line)
                waited, told = True, line
                await_unlocked(engine)
                time.sleep(grace_s)
            except UnavailableError as error:
                if told != error.message:
                    _say(error.message)
                waited, told = True, error.message
                time.sleep(_RETRY_S)
    finally:
        engine.dispose()


def _say(line: str) -> None:
    print(f"{NEWS}{line}", file=sys.stderr, flush=True)


@click.command()
@click.argument("home", type=click.Path(path_type=Path))
def main(home: Path) -> None:
    """Wait until no server works on the database of HOME."""
    try:
        sys.exit(LEFT if stand_by(load(home)) else FREE)
    except HomeportError as error:
        print(error.message, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
