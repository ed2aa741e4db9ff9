"""Statements given to the driver do what SQLAlchemy's execution of them does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from homeport.storage.dialects import insert
from homeport.storage.prepared import Prepared

metadata = sa.MetaData()
things = sa.Table(
    "things",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("extra", sa.JSON, nullable=True),
    sa.Column("flag", sa.Boolean, nullable=False, server_default=sa.true()),
)
defaulted = sa.Table(
    "defaulted",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("made", sa.String, default=lambda: "by python"),
)


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = sa.create_engine("sqlite://")
    metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection


def test_rows_are_written_as_declared(connection: Connection) -> None:
    prepared = Prepared()
    rows = [
        {"id": 1, "data": b"\0\xff", "extra": {"a": [1]}, "flag": True},
        {"id": 2, "data": b"", "extra": None, "flag": False},
    ]
    prepared.execute(connection, sa.insert(things), rows)
    found = connection.execute(sa.select(things).order_by(things.c.id)).all()
    assert [tuple(row) for row in found] == [tuple(row.values()) for row in rows]


def test_left_out_columns_and_constants(connection: Connection) -> None:
    prepared = Prepared()
    upsert = insert(things)
    upsert = upsert.on_conflict_do_update(
        index_elements=["id"], set_={"data": upsert.excluded.data}
    )
    for data in (b"1", b"2"):
        prepared.execute(connection, upsert, [{"id": 1, "data": data}])
    change = sa.update(things).where(things.c.id == sa.bindparam("of")).values(flag=False)
    assert connection.execute(sa.select(things.c.flag)).scalar() is True
    prepared.execute(connection, change, [{"of": 1}])
    assert connection.execute(sa.select(things.c.data, things.c.flag)).one() == (b"2", False)
    prepared.execute(connection, sa.delete(things).where(things.c.id == 1), [{}])
    assert connection.execute(sa.select(things)).first() is None


def test_rows_of_other_keys_are_another_statement(connection: Connection) -> None:
    prepared = Prepared()
    statement = sa.insert(things)
    prepared.execute(connection, statement, [{"id": 1, "data": b"1"}])
    prepared.execute(connection, statement, [{"id": 2, "data": b"1", "flag": False}])
    assert connection.execute(sa.select(things.c.flag)).scalars().all() == [True, False]
    with pytest.raises(KeyError, match="flag"):
        prepared.execute(
            connection, statement, [{"id": 3, "data": b"", "flag": True}, {"id": 4, "data": b""}]
        )


@pytest.mark.parametrize("count", [199, 200, 201, 399, 400, 1003])
def test_many_rows_at_once(connection: Connection, count: int) -> None:
    prepared = Prepared()
    rows = [{"id": n, "data": b"%d" % n, "extra": [n], "flag": n % 2 == 0} for n in range(count)]
    prepared.execute(connection, sa.insert(things), rows)
    found = connection.execute(sa.select(things).order_by(things.c.id)).all()
    assert [tuple(row) for row in found] == [tuple(row.values()) for row in rows]


def test_many_upserts_at_once_of_few_keys(connection: Connection) -> None:
    prepared = Prepared()
    upsert = insert(things)
    upsert = upsert.on_conflict_do_update(
        index_elements=["id"], set_={"data": upsert.excluded.data}
    )
    prepared.execute(connection, upsert, [{"id": n % 7, "data": b"%d" % n} for n in range(450)])
    found = connection.execute(sa.select(things.c.id, things.c.data).order_by(things.c.id)).all()
    last = {n % 7: b"%d" % n for n in range(450)}
    assert [tuple(row) for row in found] == sorted(last.items())


def test_many_deletions(connection: Connection) -> None:
    prepared = Prepared()
    prepared.execute(connection, sa.insert(things), [{"id": n, "data": b""} for n in range(600)])
    remove = sa.delete(things).where(things.c.id == sa.bindparam("of"))
    prepared.execute(connection, remove, [{"of": n} for n in range(1, 600)])
    assert connection.execute(sa.select(things.c.id)).scalars().all() == [0]


def test_what_sqlalchemy_must_complete_is_left_to_it(connection: Connection) -> None:
    prepared = Prepared()
    prepared.execute(connection, sa.insert(defaulted), [{"id": 1}])
    some = sa.delete(defaulted).where(defaulted.c.id.in_(sa.bindparam("some", expanding=True)))
    assert connection.execute(sa.select(defaulted.c.made)).scalar() == "by python"
    prepared.execute(connection, some, [{"some": [1, 2]}])
    assert connection.execute(sa.select(defaulted)).first() is None


def test_few_are_kept(connection: Connection) -> None:
    prepared = Prepared()
    for number in range(1000):
        statement = sa.insert(things).values(data=b"%d" % number)
        prepared.execute(connection, statement, [{"id": number}])
    assert len(prepared._known) <= 256
    assert connection.execute(sa.select(sa.func.count()).select_from(things)).scalar() == 1000
