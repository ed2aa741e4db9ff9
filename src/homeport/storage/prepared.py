"""Statements compiled once, and executed by the driver itself.

A statement of the writer is executed thousands of times a second with other values; going through
SQLAlchemy's execution each time would cost several times the work in the database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.sql.compiler import SQLCompiler

Row = Mapping[str, Any]

_KEPT_MAX: Final = 256
_TOGETHER: Final = 200
"""Rows that one INSERT takes where there are so many: half the time of as many executions."""
_PARAMETERS_MAX: Final = 30_000
"""In one statement; SQLite's own bound is 32,766."""
_NOTHING: Final = object()
_Field = tuple[str, Any, Callable[[Any], Any] | None]
"""Name of a parameter, its value if rows do not say, and what makes it fit for the driver."""


class _Prepared:
    """One statement for rows with certain keys."""

    def __init__(self, compiled: SQLCompiler, dialect: Dialect) -> None:
        self.sql = str(compiled)
        self._fields: list[_Field] = []
        self._pick: Callable[[Row], tuple[Any, ...]] | None = None
        for name in compiled.positiontup or ():
            bind = compiled.binds[name]
            # The driver takes bytes as they are; SQLAlchemy would wrap each in a memoryview.
            is_binary = isinstance(bind.type, sa.LargeBinary)
            kind = bind.type.dialect_impl(dialect)
            process = None if is_binary else kind.bind_processor(dialect)
            default = _NOTHING if bind.required else bind.effective_value
            self._fields.append((name, default, process))
        if len(self._fields) > 1 and all(
            default is _NOTHING and process is None for _, default, process in self._fields
        ):
            self._pick = itemgetter(*(name for name, _, _ in self._fields))
        self._together = _TOGETHER
        self._wide_sql = self._widened()

    def _widened(self) -> str | None:
        """The statement for ``_together`` rows, if it is an INSERT of nothing but parameters."""
        values = f"({', '.join('?' * len(self._fields))})"
        before, mark, after = self.sql.partition(f" VALUES {values}")
        if not mark or "?" in before or "?" in after:
            return None
        if self._together * len(self._fields) > _PARAMETERS_MAX:
            return None
        return f"{before} VALUES {', '.join([values] * self._together)}{after}"

    def execute(self, driver: Any, rows: Sequence[Row]) -> None:
        """Execute it for each of ``rows``."""
        done = 0
        if self._wide_sql is not None:
            while len(rows) - done >= self._together:
                part = rows[done : done + self._together]
                driver.execute(
                    self._wide_sql, list(chain.from_iterable(map(self.parameters, part)))
                )
                done += self._together
        if done < len(rows):
            driver.executemany(self.sql, map(self.parameters, rows[done:] if done else rows))

    def parameters(self, row: Row) -> tuple[Any, ...]:
        """``row`` as the driver wants it. Raises ``KeyError`` for what it lacks."""
        if self._pick is not None:
            return self._pick(row)
        found: list[Any] = []
        for name, default, process in self._fields:
            value = row.get(name, default)
            if value is _NOTHING:
                raise KeyError(f"a row has no value for {name!r}")
            found.append(value if process is None else process(value))
        return tuple(found)


class Prepared:
    """Executes statements that change rows, compiled once each where the driver allows it."""

    def __init__(self) -> None:
        self._known: dict[tuple[sa.Executable, tuple[str, ...]], _Prepared | None] = {}

    def execute(
        self, connection: Connection, statement: sa.Executable, rows: Sequence[Row]
    ) -> None:
        """Execute ``statement`` for each of ``rows``, which all have the same keys."""
        key = (statement, tuple(rows[0]))
        prepared = self._known.get(key, _NOTHING)
        if prepared is _NOTHING:
            if len(self._known) >= _KEPT_MAX:
                self._known.clear()
            prepared = self._known[key] = _prepare(connection.dialect, *key)
        if prepared is None:
            connection.execute(statement, rows)
            return
        assert isinstance(prepared, _Prepared)
        driver = connection.connection.driver_connection
        assert driver is not None
        prepared.execute(driver, rows)


def _prepare(
    dialect: Dialect, statement: sa.Executable, names: tuple[str, ...]
) -> _Prepared | None:
    """``None`` for a statement that SQLAlchemy has to complete at each execution."""
    if dialect.name != "sqlite" or not isinstance(statement, sa.UpdateBase):
        return None
    compiled = statement.compile(dialect=dialect, column_keys=list(names))
    if (
        compiled.post_compile_params
        or compiled.literal_execute_params
        or compiled.insert_prefetch
        or compiled.update_prefetch
    ):
        return None
    return _Prepared(compiled, dialect)
