"""The tables of calls, inputs and outputs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from homeport.calls.model import Call, CallType, Input, InputState, Invocation, Output
from homeport.link.messages import Result
from homeport.storage.database import Database, Step, metadata
from homeport.storage.dialects import insert

calls = sa.Table(
    "calls",
    metadata,
    sa.Column("call_id", sa.String(40), primary_key=True),
    sa.Column("function_id", sa.String(40), nullable=False),
    sa.Column("app_id", sa.String(40), nullable=False, index=True),
    sa.Column("type", sa.Integer, nullable=False),
    sa.Column("invocation", sa.Integer, nullable=False),
    sa.Column("parent_input_id", sa.String(40), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("is_closed", sa.Boolean, nullable=False),
    sa.Column("cancelled", sa.Boolean, nullable=False),
)

inputs = sa.Table(
    "inputs",
    metadata,
    sa.Column("call_id", sa.String(40), primary_key=True),
    sa.Column("idx", sa.Integer, primary_key=True),
    sa.Column("input_id", sa.String(40), nullable=False),
    sa.Column("args", sa.LargeBinary, nullable=True),
    sa.Column("args_blob_id", sa.String(40), nullable=False),
    sa.Column("data_format", sa.Integer, nullable=False),
    sa.Column("method_name", sa.String(256), nullable=False),
    sa.Column("enqueued_at", sa.Double, nullable=False, server_default="0"),
)

outputs = sa.Table(
    "outputs",
    metadata,
    sa.Column("call_id", sa.String(40), primary_key=True),
    sa.Column("idx", sa.Integer, primary_key=True),
    sa.Column("input_id", sa.String(40), nullable=False),
    sa.Column("result", sa.LargeBinary, nullable=False),
    sa.Column("data_format", sa.Integer, nullable=False),
    sa.Column("task_id", sa.String(40), nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float, nullable=False),
)

_insert_call: sa.Executable = insert(calls).on_conflict_do_nothing()
_insert_input: sa.Executable = insert(inputs).on_conflict_do_nothing()
_insert_output: sa.Executable = insert(outputs).on_conflict_do_nothing()
_update_call: sa.Executable = (
    sa.update(calls)
    .where(calls.c.call_id == sa.bindparam("id"))
    .values(is_closed=sa.bindparam("closed"), cancelled=sa.bindparam("was_cancelled"))
)
_deletes: tuple[sa.Executable, ...] = tuple(
    sa.delete(table).where(table.c.call_id == sa.bindparam("id"))
    for table in (outputs, inputs, calls)
)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Result)


class CallStore:
    """The durable record of work. ``add_*`` return futures that are done when committed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_call(self, call: Call) -> asyncio.Future[None]:
        return self._database.append(*_call_step(call))

    def add_whole(
        self, call: Call, items: Sequence[Input], beside: Sequence[Step]
    ) -> asyncio.Future[None]:
        """Record a call with its inputs, and ``beside`` in the same commit."""
        return self._database.append_all([_call_step(call), _input_step(items), *beside])

    def update_call(self, call: Call) -> asyncio.Future[None]:
        row = {"id": call.call_id, "closed": call.is_closed, "was_cancelled": call.cancelled}
        return self._database.append(_update_call, [row])

    def add_inputs(self, items: Sequence[Input]) -> asyncio.Future[None]:
        return self._database.append(*_input_step(items))

    def add_outputs(self, call_id: str, items: Sequence[Output]) -> asyncio.Future[None]:
        rows = [
            {
                "call_id": call_id,
                "idx": item.idx,
                "input_id": item.input_id,
                "result": _encoder.encode(item.result),
                "data_format": item.data_format,
                "task_id": item.task_id,
                "started_at": item.started_at,
                "finished_at": item.finished_at,
            }
            for item in items
        ]
        return self._database.append(_insert_output, rows)

    def delete_calls(self, call_ids: Sequence[str]) -> asyncio.Future[None]:
        rows = [{"id": call_id} for call_id in call_ids]
        for statement in _deletes[:-1]:
            self._database.append(statement, rows)
        return self._database.append(_deletes[-1], rows)

    async def load(self) -> list[Call]:
        """Every call that is kept, with its inputs and outputs."""
        return await self._database.read(_load)


def _call_step(call: Call) -> Step:
    row = {
        "call_id": call.call_id,
        "function_id": call.function_id,
        "app_id": call.app_id,
        "type": int(call.type),
        "invocation": int(call.invocation),
        "parent_input_id": call.parent_input_id,
        "created_at": call.created_at,
        "is_closed": call.is_closed,
        "cancelled": call.cancelled,
    }
    return (_insert_call, [row])


def _input_step(items: Sequence[Input]) -> Step:
    rows = [
        {
            "call_id": item.call.call_id,
            "idx": item.idx,
            "input_id": item.input_id,
            "args": item.args,
            "args_blob_id": item.args_blob_id,
            "data_format": item.data_format,
            "method_name": item.method_name,
            "enqueued_at": item.enqueued_at,
        }
        for item in items
    ]
    return (_insert_input, rows)


def _load(connection: sa.Connection) -> list[Call]:
    found: dict[str, Call] = {}
    for row in connection.execute(sa.select(calls).order_by(calls.c.created_at)):
        found[row.call_id] = Call(
            call_id=row.call_id,
            function_id=row.function_id,
            app_id=row.app_id,
            type=CallType(row.type),
            invocation=Invocation(row.invocation),
            parent_input_id=row.parent_input_id,
            created_at=row.created_at,
            is_closed=row.is_closed,
            cancelled=row.cancelled,
        )
    for row in connection.execute(sa.select(inputs).order_by(inputs.c.call_id, inputs.c.idx)):
        call = found.get(row.call_id)
        if call is not None:
            call.inputs[row.idx] = _input(call, row)
    for row in connection.execute(sa.select(outputs).order_by(outputs.c.finished_at)):
        call = found.get(row.call_id)
        if call is not None and row.idx in call.inputs:
            _attach_output(call, row)
    return list(found.values())


def _input(call: Call, row: Any) -> Input:
    return Input(
        input_id=row.input_id,
        call=call,
        idx=row.idx,
        args=row.args,
        args_blob_id=row.args_blob_id,
        data_format=row.data_format,
        method_name=row.method_name,
        enqueued_at=row.enqueued_at,
    )


def _attach_output(call: Call, row: Any) -> None:
    output = Output(
        input_id=row.input_id,
        idx=row.idx,
        result=_decoder.decode(row.result),
        data_format=row.data_format,
        task_id=row.task_id,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
    item = call.inputs[row.idx]
    item.output = output
    item.state = InputState.DONE
    call.outputs.append(output)
    if call.unfinished == 0:
        call.finished_at = output.finished_at
