"""RPC handlers of the workspace: who am I, what is it called, its settings and tokens."""

from __future__ import annotations

from typing import Final

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2

from homeport.environments.service import EnvironmentService
from homeport.kernel.numbers import wait_s
from homeport.kernel.signing import Signer
from homeport.rpc.accepted import accepted
from homeport.rpc.context import Context, TaskIdentity, caller_of
from homeport.rpc.versions import check_builder, image_builder_version_for
from homeport.workspace.flows import TokenFlows
from homeport.workspace.service import WorkspaceService
from homeport.workspace.tokens import Token, Tokens

AUTH_TOKEN_AUDIENCE: Final = "control-plane"
"""Purpose of the tokens that clients send as ``x-modal-auth-token``."""
_AUTH_TOKEN_TTL_S: Final = 3600.0
"""Clients fetch the next one after half of it."""
_FLOW_WAIT_S: Final = 60.0


class WorkspaceRpc:
    """The workspace and the caller's own token."""

    def __init__(
        self,
        workspace: WorkspaceService,
        environments: EnvironmentService,
        tokens: Tokens,
        signer: Signer,
        flows: TokenFlows,
    ) -> None:
        self._workspace = workspace
        self._environments = environments
        self._tokens = tokens
        self._signer = signer
        self._flows = flows

    async def ClientHello(self, request: Empty, ctx: Context) -> api_pb2.ClientHelloResponse:
        return api_pb2.ClientHelloResponse(
            image_builder_version=image_builder_version_for(ctx.client_version)
        )

    async def AuthTokenGet(
        self, request: api_pb2.AuthTokenGetRequest, ctx: Context
    ) -> api_pb2.AuthTokenGetResponse:
        subject = caller_of(ctx.identity)
        token = self._signer.issue(subject, AUTH_TOKEN_AUDIENCE, _AUTH_TOKEN_TTL_S)
        return api_pb2.AuthTokenGetResponse(token=token)

    async def WorkspaceNameLookup(
        self, request: Empty, ctx: Context
    ) -> api_pb2.WorkspaceNameLookupResponse:
        name = self._workspace.name
        return api_pb2.WorkspaceNameLookupResponse(workspace_name=name, username=name)

    async def WorkspaceDashboardUrlGet(
        self, request: api_pb2.WorkspaceDashboardUrlRequest, ctx: Context
    ) -> api_pb2.WorkspaceDashboardUrlResponse:
        environment = self._environments.resolve(request.environment_name, ctx.environment)
        return api_pb2.WorkspaceDashboardUrlResponse(
            url=f"{ctx.http_base}/apps?environment={environment.name}"
        )

    async def WorkspaceMembersList(
        self, request: Empty, ctx: Context
    ) -> api_pb2.WorkspaceMembersListResponse:
        user = self._user()
        owner = api_pb2.WorkspaceMembersListItem(
            member_id=user.user_id,
            member_displayname=user.username,
            member_role=api_pb2.MEMBER_ROLE_OWNER,
            joined_at=self._tokens.list()[0].created_at,
            user_id=user.user_id,
        )
        return api_pb2.WorkspaceMembersListResponse(members=[owner])

    async def WorkspaceSettings(
        self, request: Empty, ctx: Context
    ) -> api_pb2.WorkspaceSettingsResponse:
        builder = self._workspace.image_builder_version
        return api_pb2.WorkspaceSettingsResponse(
            default_environment_name=self._environments.default.name,
            image_builder_version=builder or image_builder_version_for(ctx.client_version),
        )

    async def WorkspaceSetDefaultEnvironment(
        self, request: api_pb2.WorkspaceSetDefaultEnvironmentRequest, ctx: Context
    ) -> Empty:
        await self._environments.set_default(request.environment_name)
        return Empty()

    async def WorkspaceSetImageBuilderVersion(
        self, request: api_pb2.WorkspaceSetImageBuilderVersionRequest, ctx: Context
    ) -> api_pb2.WorkspaceSetImageBuilderVersionResponse:
        version = check_builder(request.new_image_builder_version)
        await self._workspace.set_image_builder_version(version)
        return api_pb2.WorkspaceSetImageBuilderVersionResponse(image_builder_version=version)

    @accepted("the client suggests commands by itself when the server has no better idea")
    async def CliCommandSuggest(
        self, request: api_pb2.CliCommandSuggestRequest, ctx: Context
    ) -> api_pb2.CliCommandSuggestResponse:
        return api_pb2.CliCommandSuggestResponse()

    # ── tokens ──────────────────────────────────────────────────────────────────────────────

    async def TokenFlowCreate(
        self, request: api_pb2.TokenFlowCreateRequest, ctx: Context
    ) -> api_pb2.TokenFlowCreateResponse:
        flow = self._flows.begin(ctx.new_id("tf"), lifetime_s=request.expires_in_seconds)
        return api_pb2.TokenFlowCreateResponse(
            token_flow_id=flow.flow_id,
            web_url=f"{ctx.http_base}/token/{flow.flow_id}",
            code=flow.code,
            wait_secret=flow.wait_secret,
        )

    async def TokenFlowWait(
        self, request: api_pb2.TokenFlowWaitRequest, ctx: Context
    ) -> api_pb2.TokenFlowWaitResponse:
        timeout_s = wait_s(request.timeout, _FLOW_WAIT_S)
        found = await self._flows.wait(request.token_flow_id, request.wait_secret, timeout_s)
        if found is None:
            return api_pb2.TokenFlowWaitResponse(timeout=True)
        return api_pb2.TokenFlowWaitResponse(
            token_id=found[0], token_secret=found[1], workspace_username=self._workspace.name
        )

    async def TokenInfoGet(
        self, request: api_pb2.TokenInfoGetRequest, ctx: Context
    ) -> api_pb2.TokenInfoGetResponse:
        response = api_pb2.TokenInfoGetResponse(
            token_id=caller_of(ctx.identity),
            workspace_id=self._workspace.workspace_id,
            workspace_name=self._workspace.name,
            user_identity=self._user(),
        )
        if not isinstance(ctx.identity, TaskIdentity):
            token = self._tokens.get(ctx.require_client().token_id)
            response.token_name = token.name
            response.created_at.CopyFrom(Timestamp(seconds=int(token.created_at)))
        return response

    async def TokensList(self, request: Empty, ctx: Context) -> api_pb2.TokensListResponse:
        ctx.require_client()
        return api_pb2.TokensListResponse(
            tokens=[self._token_message(token) for token in self._tokens.list()]
        )

    async def TokenDelete(self, request: api_pb2.TokenDeleteRequest, ctx: Context) -> Empty:
        ctx.require_client()
        await self._tokens.delete(request.token_id, ctx.operation)
        return Empty()

    async def TokenDisable(self, request: api_pb2.TokenDisableRequest, ctx: Context) -> Empty:
        ctx.require_client()
        await self._tokens.disable(request.token_ids)
        return Empty()

    async def TokenEnable(self, request: api_pb2.TokenEnableRequest, ctx: Context) -> Empty:
        ctx.require_client()
        await self._tokens.enable(request.token_ids)
        return Empty()

    def _user(self) -> api_pb2.UserIdentity:
        return api_pb2.UserIdentity(user_id=self._workspace.owner_id, username=self._workspace.name)

    def _token_message(self, token: Token) -> api_pb2.TokensListResponse.Token:
        user = self._user()
        return api_pb2.TokensListResponse.Token(
            token_id=token.token_id,
            created_at=token.created_at,
            workspace_id=self._workspace.workspace_id,
            user_id=user.user_id,
            last_used_at=token.last_used_at or 0.0,
            member_displayname=user.username,
            member_id=user.user_id,
            name=token.name,
            disabled=token.disabled_at is not None,
        )
