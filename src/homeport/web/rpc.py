"""RPC handlers of proxy tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from homeport.environments.service import EnvironmentService
from homeport.functions.service import FunctionService
from homeport.kernel.errors import NotFoundError
from homeport.rpc.context import Context, caller_of
from homeport.web.model import ProxyToken
from homeport.web.service import WebRoutes
from homeport.web.tokens import ProxyTokens


class WebRpc:
    """Tokens of callers: short-lived ones; proxy tokens: make, list, rename, give to environments, delete."""

    def __init__(
        self,
        tokens: ProxyTokens,
        environments: EnvironmentService,
        functions: FunctionService,
        routes: WebRoutes,
    ) -> None:
        self._functions = functions
        self._routes = routes
        self._tokens = tokens
        self._environments = environments

    async def FunctionGetFlashAuthToken(
        self, request: api_pb2.FunctionGetFlashAuthTokenRequest, ctx: Context
    ) -> api_pb2.FunctionGetFlashAuthTokenResponse:
        record = self._functions.get(request.function_id)
        token = self._tokens.issue_short(caller_of(ctx.identity), record.function_id)
        return api_pb2.FunctionGetFlashAuthTokenResponse(token=token)

    async def CurlGetAuthToken(
        self, request: api_pb2.CurlAuthTokenRequest, ctx: Context
    ) -> api_pb2.CurlAuthTokenResponse:
        ctx.require_client()
        host = host_of(request.url)
        target = self._routes.find(host)
        if target is None:
            raise NotFoundError(self._routes.unknown(host))
        token = self._tokens.issue_short(caller_of(ctx.identity), target.record.function_id)
        return api_pb2.CurlAuthTokenResponse(token=token)

    async def WebhookTokenCreate(
        self, request: api_pb2.WebhookTokenCreateRequest, ctx: Context
    ) -> api_pb2.TokenCreateResponse:
        ctx.require_client()
        token, secret = await self._tokens.create(request.name, scoped=request.scoped)
        return api_pb2.TokenCreateResponse(token_id=token.token_id, token_secret=secret)

    async def WebhookTokenList(
        self, request: Empty, ctx: Context
    ) -> api_pb2.WebhookTokenListResponse:
        ctx.require_client()
        return _listed(self._tokens.list())

    async def WebhookTokenListForEnvironment(
        self, request: api_pb2.WebhookTokenListForEnvironmentRequest, ctx: Context
    ) -> api_pb2.WebhookTokenListResponse:
        ctx.require_client()
        environment = self._environments.resolve(request.environment_name or ctx.environment)
        return _listed(self._tokens.list(environment.environment_id))

    async def WebhookTokenUpdate(
        self, request: api_pb2.WebhookTokenUpdateRequest, ctx: Context
    ) -> api_pb2.WebhookToken:
        ctx.require_client()
        if not request.HasField("name"):
            return _message(self._tokens.get(request.token_id))
        return _message(await self._tokens.rename(request.token_id, request.name))

    async def WebhookTokenDelete(self, request: api_pb2.TokenDeleteRequest, ctx: Context) -> Empty:
        ctx.require_client()
        await self._tokens.delete(request.token_id)
        return Empty()

    async def WebhookTokenEnvironmentList(
        self, request: api_pb2.WebhookTokenEnvironmentListRequest, ctx: Context
    ) -> api_pb2.WebhookTokenEnvironmentListResponse:
        ctx.require_client()
        environments = sorted(self._tokens.get(request.token_id).environments)
        return api_pb2.WebhookTokenEnvironmentListResponse(environment_ids=environments)

    async def WebhookTokenEnvironmentAdd(
        self, request: api_pb2.WebhookTokenEnvironmentAddRequest, ctx: Context
    ) -> Empty:
        ctx.require_client()
        await self._tokens.add_environment(request.token_id, request.environment_id)
        return Empty()

    async def WebhookTokenEnvironmentRemove(
        self, request: api_pb2.WebhookTokenEnvironmentRemoveRequest, ctx: Context
    ) -> Empty:
        ctx.require_client()
        await self._tokens.remove_environment(request.token_id, request.environment_id)
        return Empty()


def _listed(tokens: Iterable[ProxyToken]) -> api_pb2.WebhookTokenListResponse:
    return api_pb2.WebhookTokenListResponse(tokens=[_message(token) for token in tokens])


def _message(token: ProxyToken) -> api_pb2.WebhookToken:
    return api_pb2.WebhookToken(
        token_id=token.token_id,
        created_at=token.created_at,
        scoped=token.scoped,
        name=token.name,
    )


def host_of(url: str) -> str:
    """The host (with its port) of a URL, or of an address without its scheme; whatever was sent."""
    _, slashes, rest = url.partition("//")
    return re.split(r"[/?#]", rest if slashes else url, maxsplit=1)[0]
