"""Every statement that a module keeps ready can be said in both databases."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

import homeport

DIALECTS = {"sqlite": sqlite.dialect(), "postgresql": postgresql.dialect()}


def statements() -> dict[str, sa.ClauseElement]:
    found: dict[str, sa.ClauseElement] = {}
    for module in pkgutil.walk_packages(homeport.__path__, "homeport."):
        if module.name.startswith("homeport.storage.migrations.") or "__main__" in module.name:
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, sa.Executable) and isinstance(value, sa.ClauseElement):
                found[f"{module.name}.{name}"] = value
    return found


@pytest.mark.parametrize("database", DIALECTS)
def test_statements_fit_the_database(database: str) -> None:
    found = statements()
    assert len(found) > 30, sorted(found)
    for name, statement in found.items():
        try:
            assert str(statement.compile(dialect=DIALECTS[database]))
        except Exception as error:
            raise AssertionError(f"{name} is nothing that {database} understands") from error
