"""Secrets by their RPC handlers, on a real database."""

from __future__ import annotations

from pathlib import Path

import pytest
from modal_proto import api_pb2
from tests.unit.feature_home import Home, run

from homeport.kernel.errors import (
    AlreadyExistsError,
    InternalError,
    InvalidError,
    NotFoundError,
)
from homeport.secrets.crypt import SecretBox
from homeport.secrets.rpc import SecretRpc
from homeport.secrets.service import SecretService
from homeport.secrets.store import SecretStore
from homeport.storage.operations import OperationLog

LOOKUP, KEEP, FAIL, OVERWRITE, OF_APP, EPHEMERAL = range(6)


def rpc_of(home: Home) -> SecretRpc:
    return SecretRpc(home.secrets, home.environments)


async def create(
    home: Home,
    kind: int,
    name: str = "",
    values: dict[str, str] | None = None,
    key: str = "",
    **options: object,
) -> api_pb2.SecretGetOrCreateResponse:
    request = api_pb2.SecretGetOrCreateRequest(
        object_creation_type=kind,  # type: ignore[arg-type]
        deployment_name=name,
        env_dict=values or {},
        **options,  # type: ignore[arg-type]
    )
    return await rpc_of(home).SecretGetOrCreate(request, home.context("SecretGetOrCreate", key=key))


def test_creation_types(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        with pytest.raises(NotFoundError, match=r"'db' not found in environment 'main'"):
            await create(home, LOOKUP, "db")
        first = await create(home, FAIL, "db", {"USER": "u", "PASSWORD": "p"})
        assert first.secret_id.startswith("st-")
        assert first.metadata.name == "db"
        assert list(first.metadata.keys) == ["PASSWORD", "USER"]
        assert first.metadata.environment_name == "main"
        assert first.metadata.creation_info.created_at > 0
        assert first.metadata.creation_info.created_by == "ak-1"
        with pytest.raises(AlreadyExistsError):
            await create(home, FAIL, "db", {"X": "1"})
        kept = await create(home, KEEP, "db", {"X": "1"})
        assert kept == first
        assert await home.secrets.env([first.secret_id]) == {"USER": "u", "PASSWORD": "p"}
        replaced = await create(home, OVERWRITE, "db", {"X": "1"})
        assert replaced.secret_id == first.secret_id
        assert await home.secrets.env([first.secret_id]) == {"X": "1"}
        found = await create(home, LOOKUP, "db")
        assert list(found.metadata.keys) == ["X"]
        assert found.metadata.last_used_at > 0

    run(tmp_path, scenario)


def test_missing_keys_are_named(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        await create(home, FAIL, "db", {"USER": "u"})
        await create(home, LOOKUP, "db", required_keys=["USER"])
        with pytest.raises(NotFoundError, match=r"'db' is missing key\(s\): HOST, PORT"):
            await create(home, LOOKUP, "db", required_keys=["USER", "HOST", "PORT"])

    run(tmp_path, scenario)


def test_a_repeated_call_is_the_same_call(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        first = await create(home, FAIL, "db", {"A": "1"}, key="k-1")
        assert await create(home, FAIL, "db", {"A": "1"}, key="k-1") == first
        with pytest.raises(AlreadyExistsError):
            await create(home, FAIL, "db", {"A": "1"}, key="k-2")
        ephemeral = await create(home, EPHEMERAL, values={"A": "1"}, key="k-3")
        assert await create(home, EPHEMERAL, values={"A": "1"}, key="k-3") == ephemeral

    run(tmp_path, scenario)


def test_anonymous_secrets_of_an_app_are_the_same_by_content(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        one = await create(home, OF_APP, values={"A": "1", "B": "2"}, app_id="ap-1")
        assert one.metadata.name == ""
        again = await create(home, OF_APP, values={"B": "2", "A": "1"}, app_id="ap-1")
        assert again.secret_id == one.secret_id
        other = await create(home, OF_APP, values={"A": "1"}, app_id="ap-1")
        elsewhere = await create(home, OF_APP, values={"A": "1", "B": "2"}, app_id="ap-2")
        assert len({one.secret_id, other.secret_id, elsewhere.secret_id}) == 3
        await home.secrets.delete_of_app("ap-1")
        with pytest.raises(NotFoundError):
            await home.secrets.env([one.secret_id])
        assert await home.secrets.env([elsewhere.secret_id]) == {"A": "1", "B": "2"}
        with pytest.raises(InvalidError):
            await create(home, OF_APP, values={"A": "1"})

    run(tmp_path, scenario)


def test_later_secrets_override_earlier_ones(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        one = (await create(home, FAIL, "one", {"A": "1", "B": "1"})).secret_id
        two = (await create(home, EPHEMERAL, values={"B": "2", "C": "2"})).secret_id
        assert await home.secrets.env([one, two]) == {"A": "1", "B": "2", "C": "2"}
        assert await home.secrets.env([two, one]) == {"A": "1", "B": "1", "C": "2"}
        assert await home.secrets.env([]) == {}
        with pytest.raises(NotFoundError, match="st-gone"):
            await home.secrets.env([one, "st-gone"])

    run(tmp_path, scenario)


def test_update_and_delete(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        rpc = rpc_of(home)
        secret_id = (await create(home, FAIL, "db", {"A": "1", "B": "2"})).secret_id
        updates = [
            api_pb2.SecretUpdateRequest.Update(key="A", value=""),
            api_pb2.SecretUpdateRequest.Update(key="B"),
            api_pb2.SecretUpdateRequest.Update(key="C", value="3"),
        ]
        request = api_pb2.SecretUpdateRequest(secret_id=secret_id, updates=updates)
        await rpc.SecretUpdate(request, home.context())
        assert await home.secrets.env([secret_id]) == {"A": "", "C": "3"}
        info = api_pb2.SecretGetInfoRequest(secret_id=secret_id)
        answer = await rpc.SecretGetInfo(info, home.context())
        assert list(answer.metadata.keys) == ["A", "C"]
        deletion = api_pb2.SecretDeleteRequest(secret_id=secret_id)
        await rpc.SecretDelete(deletion, home.context())
        for call in (
            rpc.SecretDelete(deletion, home.context()),
            rpc.SecretGetInfo(info, home.context()),
            rpc.SecretUpdate(request, home.context()),
        ):
            with pytest.raises(NotFoundError):
                await call

    run(tmp_path, scenario)


def test_lists_page_without_gaps(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        names = [f"s-{number}" for number in range(25)]
        home.clock.now = lambda: 1_000.0  # type: ignore[method-assign]
        for name in names:
            await create(home, FAIL, name, {"A": "1"})
        await create(home, EPHEMERAL, values={"A": "1"})
        seen: list[str] = []
        before = 990.0  # a client whose clock is behind
        while True:
            page = api_pb2.ListPagination(max_objects=10, created_before=before)
            answer = await rpc_of(home).SecretList(
                api_pb2.SecretListRequest(pagination=page), home.context()
            )
            assert answer.environment_name == "main"
            seen += [item.label for item in answer.items]
            if len(answer.items) < 10:
                break
            before = answer.items[-1].metadata.creation_info.created_at
        assert seen == names[::-1]
        everything = await rpc_of(home).SecretList(api_pb2.SecretListRequest(), home.context())
        assert len(everything.items) == 25

    run(tmp_path, scenario)


@pytest.mark.parametrize("key", ["", "1A", "A-B", "A B", "A=", "A\n"])
def test_keys_must_be_names_of_variables(tmp_path: Path, key: str) -> None:
    async def scenario(home: Home) -> None:
        with pytest.raises(InvalidError):
            await create(home, EPHEMERAL, values={key: "x"})

    run(tmp_path, scenario)


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a/b"])
def test_names_are_checked(tmp_path: Path, name: str) -> None:
    async def scenario(home: Home) -> None:
        with pytest.raises(InvalidError):
            await create(home, FAIL, name, {"A": "1"})

    run(tmp_path, scenario)


def test_values_are_not_in_the_database_and_need_the_key(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        secret_id = (await create(home, FAIL, "db", {"A": "hunter2hunter2"})).secret_id
        other_key = SecretService(
            SecretStore(home.database),
            SecretBox(b"o" * 32),
            OperationLog(home.database, home.clock),
        )
        with pytest.raises(InternalError, match=r"secret\.key"):
            await other_key.env([secret_id])

    run(tmp_path, scenario)
    written = b"".join(path.read_bytes() for path in tmp_path.glob("homeport.db*"))
    assert b"hunter2" not in written


def test_deleting_an_environment_deletes_its_secrets(tmp_path: Path) -> None:
    async def scenario(home: Home) -> None:
        home.environments.on_deleting(home.secrets.delete_of_environment)
        await home.environments.create("other")
        inside = await create(home, FAIL, "db", {"A": "1"}, environment_name="other")
        outside = await create(home, FAIL, "db", {"A": "2"})
        await home.environments.delete("other")
        with pytest.raises(NotFoundError):
            await home.secrets.get(inside.secret_id)
        assert await home.secrets.env([outside.secret_id]) == {"A": "2"}

    run(tmp_path, scenario)
