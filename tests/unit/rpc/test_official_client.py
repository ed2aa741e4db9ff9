"""The official client against the edge, over a socket."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from modal._utils.jwt_utils import DecodedJwt
from modal.exception import (
    AlreadyExistsError,
    AuthError,
    ConflictError,
    InternalError,
    NotFoundError,
    UnimplementedError,
)
from modal_proto import api_pb2
from tests.unit.rpc.rpc_harness import Edge, edge

from homeport.kernel.errors import ExhaustedError
from homeport.rpc.context import Context


def run(home: Path, program: Callable[[Edge], Awaitable[None]], *handlers: object) -> None:
    async def main() -> None:
        async with edge(home, handlers=handlers) as here:
            await program(here)

    asyncio.run(main())


def test_says_hello(tmp_path: Path) -> None:
    async def program(here: Edge) -> None:
        async with here.client() as client:
            await client.hello()

    run(tmp_path, program)


def test_a_wrong_token_is_an_auth_error(tmp_path: Path) -> None:
    async def program(here: Edge) -> None:
        async with here.client(token=("ak-x", "as-x")) as client:
            with pytest.raises(AuthError, match="homeport env"):
                await client.hello()

    run(tmp_path, program)


def test_a_container_over_the_network_is_an_auth_error(tmp_path: Path) -> None:
    async def program(here: Edge) -> None:
        async with here.client(kind=api_pb2.CLIENT_TYPE_CONTAINER) as client:
            with pytest.raises(AuthError, match="through the node"):
                await client.hello()

    run(tmp_path, program)


def test_an_old_client_is_told_to_upgrade(tmp_path: Path) -> None:
    async def program(here: Edge) -> None:
        async with here.client(version="0.77.0") as client:
            with pytest.raises(ConflictError, match="pip install -U modal"):
                await client.hello()

    run(tmp_path, program)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    async def program(here: Edge) -> None:
        async with here.client() as client:
            with pytest.raises(UnimplementedError, match="does not do DomainList yet"):
                await client._stub.DomainList(api_pb2.DomainListRequest())
            with pytest.raises(UnimplementedError, match="does not do WorkspaceBillingReport yet"):
                async for _ in client._stub.WorkspaceBillingReport.unary_stream(
                    api_pb2.WorkspaceBillingReportRequest()
                ):
                    pass

    run(tmp_path, program)


class Dicts:
    """Fails its first calls with ``failures``, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.keys: list[str] = []

    async def DictPop(
        self, request: api_pb2.DictPopRequest, ctx: Context
    ) -> api_pb2.DictPopResponse:
        self.keys.append(ctx.idempotency_key)
        if self.failures:
            raise self.failures.pop(0)
        return api_pb2.DictPopResponse(found=True, value=b"x")


def test_a_defect_is_retried_with_the_same_key(tmp_path: Path) -> None:
    dicts = Dicts(KeyError("x"))

    async def program(here: Edge) -> None:
        async with here.client() as client:
            assert (await client._stub.DictPop(api_pb2.DictPopRequest())).found

    run(tmp_path, program, dicts)
    assert len(dicts.keys) == 2
    assert len(set(dicts.keys)) == 1


def test_a_lasting_defect_is_an_internal_error_with_its_request_id(tmp_path: Path) -> None:
    async def program(here: Edge) -> None:
        async with here.client() as client:
            with pytest.raises(InternalError, match=r"internal error, request .*-4"):
                await client._stub.DictPop(api_pb2.DictPopRequest())

    run(tmp_path, program, Dicts(*[KeyError("x")] * 4))


def test_a_retry_hint_makes_the_client_come_back(tmp_path: Path) -> None:
    hint = ExhaustedError("slow down", retry_after_s=0.1)
    dicts = Dicts(*[hint] * 5)

    async def program(here: Edge) -> None:
        async with here.client() as client:
            assert (await client._stub.DictPop(api_pb2.DictPopRequest())).found

    run(tmp_path, program, dicts)
    assert len(dicts.keys) == 6


def test_an_answer_lost_on_the_way_is_not_a_second_change(tmp_path: Path) -> None:
    """The first attempt's deadline passes while it works; the repeat joins it."""

    class Slow(Dicts):
        async def DictPop(
            self, request: api_pb2.DictPopRequest, ctx: Context
        ) -> api_pb2.DictPopResponse:
            self.keys.append(ctx.idempotency_key)
            await asyncio.sleep(0.3)
            return api_pb2.DictPopResponse(found=True, value=str(len(self.keys)).encode())

    dicts = Slow()

    async def program(here: Edge) -> None:
        from modal._utils.grpc_utils import Retry

        async with here.client() as client:
            retry = Retry(attempt_timeout=0.2)
            answer = await client._stub.DictPop(api_pb2.DictPopRequest(), retry=retry)
            assert answer.value == b"1"

    run(tmp_path, program, dicts)
    assert len(dicts.keys) == 1


def test_environments(tmp_path: Path) -> None:
    async def program(here: Edge) -> None:
        async with here.client() as client:
            stub = client._stub
            main = await stub.EnvironmentGetOrCreate(api_pb2.EnvironmentGetOrCreateRequest())
            assert main.metadata.name == "main"
            assert main.environment_id.startswith("en-")
            assert main.metadata.settings.image_builder_version == "2025.06"
            with pytest.raises(NotFoundError, match="Environment 'dev' not found; there are: main"):
                await stub.EnvironmentGetOrCreate(
                    api_pb2.EnvironmentGetOrCreateRequest(deployment_name="dev")
                )
            await stub.EnvironmentCreate(api_pb2.EnvironmentCreateRequest(name="dev"))
            with pytest.raises(AlreadyExistsError, match="'dev' already exists"):
                await stub.EnvironmentCreate(api_pb2.EnvironmentCreateRequest(name="dev"))
            request = api_pb2.EnvironmentUpdateRequest(current_name="dev")
            request.name.value = "stage"
            request.image_builder_version = "2026.10"
            item = await stub.EnvironmentUpdate(request)
            assert (item.name, item.image_builder_version) == ("stage", "2026.10")
            listed = (await stub.EnvironmentList(Empty())).items
            assert [(item.name, item.default) for item in listed] == [
                ("main", True),
                ("stage", False),
            ]
            await stub.EnvironmentDelete(api_pb2.EnvironmentDeleteRequest(name="stage"))
            with pytest.raises(ConflictError, match="default one"):
                await stub.EnvironmentDelete(api_pb2.EnvironmentDeleteRequest(name="main"))

    run(tmp_path, program)


@pytest.mark.parametrize(
    ("version", "builder"), [("1.0.5", "2024.10"), ("1.2.6", "2025.06"), ("1.6.4", "2026.10")]
)
def test_a_builder_version_is_set_as_far_as_the_client_knows_it(
    tmp_path: Path, version: str, builder: str
) -> None:
    async def program(here: Edge) -> None:
        async with here.client(version=version) as client:
            await client._stub.WorkspaceSetImageBuilderVersion(
                api_pb2.WorkspaceSetImageBuilderVersionRequest(new_image_builder_version="2026.10")
            )
            found = await client._stub.EnvironmentGetOrCreate(
                api_pb2.EnvironmentGetOrCreateRequest()
            )
            assert found.metadata.settings.image_builder_version == builder

    run(tmp_path, program)


def test_the_default_environment_can_be_another(tmp_path: Path) -> None:
    async def program(here: Edge) -> None:
        async with here.client() as client:
            stub = client._stub
            await stub.EnvironmentCreate(api_pb2.EnvironmentCreateRequest(name="dev"))
            await stub.WorkspaceSetDefaultEnvironment(
                api_pb2.WorkspaceSetDefaultEnvironmentRequest(environment_name="dev")
            )
            found = await stub.EnvironmentGetOrCreate(api_pb2.EnvironmentGetOrCreateRequest())
            assert found.metadata.name == "dev"
            settings = await stub.WorkspaceSettings(Empty())
            assert settings.default_environment_name == "dev"
            await stub.EnvironmentDelete(api_pb2.EnvironmentDeleteRequest(name="main"))

    run(tmp_path, program)


def test_the_auth_token_is_one_the_client_can_read(tmp_path: Path) -> None:
    async def program(here: Edge) -> None:
        async with here.client() as client:
            answer = await client._stub.AuthTokenGet(api_pb2.AuthTokenGetRequest())
            payload = DecodedJwt.decode_without_verification(answer.token).payload
            assert payload["sub"] == here.credentials.token_id
            assert payload["exp"] > payload["iat"]

    run(tmp_path, program)


def test_tokens_can_be_listed_disabled_and_deleted(tmp_path: Path) -> None:
    async def program(here: Edge) -> None:
        token, secret = await here.tokens.create("laptop")
        async with (
            here.client() as client,
            here.client(token=(token.token_id, secret)) as other,
        ):
            await other.hello()
            await client._stub.TokenDisable(api_pb2.TokenDisableRequest(token_ids=[token.token_id]))
            with pytest.raises(AuthError):
                await other.hello()
            listed = (await client._stub.TokensList(Empty())).tokens
            assert [(item.name, item.disabled) for item in listed] == [
                ("first", False),
                ("laptop", True),
            ]
            await client._stub.TokenEnable(api_pb2.TokenEnableRequest(token_ids=[token.token_id]))
            await other.hello()
            await client._stub.TokenDelete(api_pb2.TokenDeleteRequest(token_id=token.token_id))
            with pytest.raises(AuthError):
                await other.hello()

    run(tmp_path, program)


@pytest.mark.parametrize(
    ("arguments", "status", "shown"),
    [
        (["environment", "list", "--json"], 0, '"name": "main"'),
        (["token", "info"], 0, "Workspace: homeport (ac-"),
        (["workspace", "settings", "list"], 0, "default-environment"),
        (["workspace", "members", "list", "--json"], 0, '"homeport"'),
        (["environment", "delete", "-y", "main"], 1, "is the default one"),
        (["billing", "rates"], 1, "on your own machines nothing is billed"),
    ],
)
def test_the_command_line(tmp_path: Path, arguments: list[str], status: int, shown: str) -> None:
    async def program(here: Edge) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "modal",
            *arguments,
            env={
                **os.environ,
                "MODAL_SERVER_URL": here.url,
                "MODAL_TOKEN_ID": here.credentials.token_id,
                "MODAL_TOKEN_SECRET": here.credentials.token_secret,
                "MODAL_CONFIG_PATH": str(tmp_path / "modal.toml"),
                "COLUMNS": "200",
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert shown in output.decode()
        assert process.returncode == status

    run(tmp_path, program)
