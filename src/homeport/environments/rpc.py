"""RPC handlers of environments."""

from __future__ import annotations

from typing import Final

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from homeport.environments.model import Environment
from homeport.environments.service import EnvironmentService
from homeport.kernel import ids
from homeport.kernel.errors import InvalidError, UnimplementedError
from homeport.objects.wire import creation_name
from homeport.rpc.context import Context
from homeport.rpc.versions import check_builder, image_builder_version_for, knows_builder
from homeport.workspace.service import WorkspaceService

_OWNERS_ROLE: Final = "contributor"
"""The most that clients know for an environment."""


class EnvironmentsRpc:
    """Environments: look up, list, create, change, delete."""

    def __init__(self, environments: EnvironmentService, workspace: WorkspaceService) -> None:
        self._environments = environments
        self._workspace = workspace

    async def EnvironmentGetOrCreate(
        self, request: api_pb2.EnvironmentGetOrCreateRequest, ctx: Context
    ) -> api_pb2.EnvironmentGetOrCreateResponse:
        name, how = request.deployment_name, request.object_creation_type
        if how == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            environment = self._environments.resolve(name, ctx.environment)
        elif how == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
            environment = await self._environments.ensure(
                name or ctx.environment, environment_id=ctx.new_id(ids.ENVIRONMENT)
            )
        elif how == api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS:
            environment = await self._create(name, ctx)
        else:
            raise InvalidError(f"an environment is not created as {creation_name(how)}")
        return api_pb2.EnvironmentGetOrCreateResponse(
            environment_id=environment.environment_id,
            metadata=api_pb2.EnvironmentMetadata(
                name=environment.name,
                settings=api_pb2.EnvironmentSettings(
                    image_builder_version=self._builder_version(environment, ctx),
                    webhook_suffix=environment.web_suffix,
                ),
            ),
        )

    async def EnvironmentList(
        self, request: Empty, ctx: Context
    ) -> api_pb2.EnvironmentListResponse:
        return api_pb2.EnvironmentListResponse(
            items=[_item(environment) for environment in self._environments.list()]
        )

    async def EnvironmentCreate(
        self, request: api_pb2.EnvironmentCreateRequest, ctx: Context
    ) -> Empty:
        if request.is_managed:
            raise UnimplementedError("Homeport has no restricted environments: it has no roles yet")
        await self._create(request.name, ctx)
        return Empty()

    async def EnvironmentUpdate(
        self, request: api_pb2.EnvironmentUpdateRequest, ctx: Context
    ) -> api_pb2.EnvironmentListItem:
        builder = None
        if request.HasField("image_builder_version"):
            builder = check_builder(request.image_builder_version)
        environment = await self._environments.update(
            request.current_name,
            new_name=request.name.value if request.HasField("name") else None,
            web_suffix=request.web_suffix.value if request.HasField("web_suffix") else None,
            image_builder_version=builder,
            operation=ctx.operation,
        )
        return _item(environment)

    async def EnvironmentDelete(
        self, request: api_pb2.EnvironmentDeleteRequest, ctx: Context
    ) -> Empty:
        if not request.name:
            raise InvalidError("say which environment to delete")
        await self._environments.delete(request.name, ctx.operation)
        return Empty()

    async def EnvironmentGetRoles(
        self, request: api_pb2.EnvironmentGetRolesRequest, ctx: Context
    ) -> api_pb2.EnvironmentGetRolesResponse:
        environment = self._environments.get(request.environment_id)
        owner = api_pb2.EnvironmentGetRolesResponse.Principal(
            user_id=self._workspace.owner_id,
            user_name=self._workspace.name,
            role_str=_OWNERS_ROLE,
            role=api_pb2.ENVIRONMENT_ROLE_CONTRIBUTOR,
            member_role=api_pb2.MEMBER_ROLE_OWNER,
        )
        return api_pb2.EnvironmentGetRolesResponse(
            name=environment.name, created_at=environment.created_at, principal_roles=[owner]
        )

    async def EnvironmentRoleSet(
        self, request: api_pb2.EnvironmentRoleSetRequest, ctx: Context
    ) -> Empty:
        if request.environment_id:
            self._environments.get(request.environment_id)
        if request.user_id == self._workspace.owner_id and request.role_str == _OWNERS_ROLE:
            return Empty()
        raise UnimplementedError(
            "Homeport has no roles yet: the owner of the workspace may do everything in every "
            "environment, and nobody else is in it"
        )

    async def _create(self, name: str, ctx: Context) -> Environment:
        return await self._environments.create(name, environment_id=ctx.new_id(ids.ENVIRONMENT))

    def _builder_version(self, environment: Environment, ctx: Context) -> str:
        # A version the calling client does not know is fatal there, so a setting is a wish.
        for wish in (environment.image_builder_version, self._workspace.image_builder_version):
            if wish and knows_builder(ctx.client_version, wish):
                return wish
        return image_builder_version_for(ctx.client_version)


def _item(environment: Environment) -> api_pb2.EnvironmentListItem:
    item = api_pb2.EnvironmentListItem(
        name=environment.name,
        webhook_suffix=environment.web_suffix,
        created_at=environment.created_at,
        default=environment.is_default,
        environment_id=environment.environment_id,
    )
    if environment.image_builder_version:
        item.image_builder_version = environment.image_builder_version
    return item
