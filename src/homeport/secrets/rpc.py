"""RPC handlers of secrets."""

from __future__ import annotations

from typing import Final

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from homeport.environments.model import Environment
from homeport.environments.service import EnvironmentService
from homeport.kernel import ids
from homeport.kernel.errors import InvalidError
from homeport.rpc.context import Context, caller_of
from homeport.secrets.model import Secret
from homeport.secrets.service import IfExists, SecretService

_NAMED: Final[dict[int, IfExists]] = {
    api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING: "keep",
    api_pb2.OBJECT_CREATION_TYPE_CREATE_FAIL_IF_EXISTS: "fail",
    api_pb2.OBJECT_CREATION_TYPE_CREATE_OVERWRITE_IF_EXISTS: "overwrite",
}


class SecretRpc:
    """The ``Secret…`` methods. No answer ever carries a value."""

    def __init__(self, service: SecretService, environments: EnvironmentService) -> None:
        self._service = service
        self._environments = environments

    async def SecretGetOrCreate(
        self, request: api_pb2.SecretGetOrCreateRequest, ctx: Context
    ) -> api_pb2.SecretGetOrCreateResponse:
        environment = self._environments.resolve(request.environment_name or ctx.environment)
        secret = await self._get_or_create(request, environment, ctx)
        return api_pb2.SecretGetOrCreateResponse(
            secret_id=secret.id, metadata=_metadata(secret, environment.name)
        )

    async def _get_or_create(
        self, request: api_pb2.SecretGetOrCreateRequest, environment: Environment, ctx: Context
    ) -> Secret:
        kind = request.object_creation_type
        values = dict(request.env_dict)
        if kind == api_pb2.OBJECT_CREATION_TYPE_UNSPECIFIED:
            return await self._service.named(
                environment, request.deployment_name, request.required_keys
            )
        if if_exists := _NAMED.get(kind):
            return await self._service.create(
                environment,
                request.deployment_name,
                values,
                if_exists=if_exists,
                created_by=caller_of(ctx.identity),
                secret_id=ctx.new_id(ids.SECRET),
            )
        if kind == api_pb2.OBJECT_CREATION_TYPE_ANONYMOUS_OWNED_BY_APP and not request.app_id:
            raise InvalidError("a secret that belongs to an app needs the app's id")
        return await self._service.create_anonymous(
            environment,
            values,
            app_id=request.app_id,
            created_by=caller_of(ctx.identity),
            secret_id=ctx.new_id(ids.SECRET),
        )

    async def SecretList(
        self, request: api_pb2.SecretListRequest, ctx: Context
    ) -> api_pb2.SecretListResponse:
        environment = self._environments.resolve(request.environment_name or ctx.environment)
        secrets = await self._service.list(
            environment,
            created_before=request.pagination.created_before or None,
            count=request.pagination.max_objects,
        )
        return api_pb2.SecretListResponse(
            items=[_item(secret, environment.name) for secret in secrets],
            environment_name=environment.name,
        )

    async def SecretGetInfo(
        self, request: api_pb2.SecretGetInfoRequest, ctx: Context
    ) -> api_pb2.SecretGetInfoResponse:
        secret = await self._service.get(request.secret_id)
        name = next(
            environment.name
            for environment in self._environments.list()
            if environment.environment_id == secret.environment_id
        )
        return api_pb2.SecretGetInfoResponse(metadata=_metadata(secret, name))

    async def SecretUpdate(self, request: api_pb2.SecretUpdateRequest, ctx: Context) -> Empty:
        updates = {
            update.key: update.value if update.HasField("value") else None
            for update in request.updates
        }
        await self._service.update(request.secret_id, updates)
        return Empty()

    async def SecretDelete(self, request: api_pb2.SecretDeleteRequest, ctx: Context) -> Empty:
        await self._service.delete(request.secret_id, ctx.operation)
        return Empty()


def _metadata(secret: Secret, environment: str) -> api_pb2.SecretMetadata:
    return api_pb2.SecretMetadata(
        name=secret.name,
        creation_info=api_pb2.CreationInfo(
            created_at=secret.created_at, created_by=secret.created_by
        ),
        keys=secret.keys,
        environment_name=environment,
        last_used_at=secret.last_used_at,
    )


def _item(secret: Secret, environment: str) -> api_pb2.SecretListItem:
    return api_pb2.SecretListItem(
        label=secret.name,
        created_at=secret.created_at,
        last_used_at=secret.last_used_at,
        environment_name=environment,
        secret_id=secret.id,
        metadata=_metadata(secret, environment),
    )
