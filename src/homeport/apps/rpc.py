"""RPC handlers of apps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2

from homeport.apps.deployments import Deployments
from homeport.apps.model import App, AppState, Deployment
from homeport.apps.service import AppService
from homeport.apps.suggest import Name, suggest
from homeport.apps.wire import lifecycle
from homeport.environments.service import EnvironmentService
from homeport.functions.model import Layout
from homeport.functions.service import FunctionService
from homeport.functions.wire import function_summary, layout_message
from homeport.kernel.errors import InvalidError, NotFoundError
from homeport.kernel.numbers import member
from homeport.rpc.context import Context
from homeport.tasks.service import TaskService

_SUGGESTIONS: Final = 4
"""Names that are suggested where the client does not say how many."""


class AppsRpc:
    """Apps: create, publish, look up, list, stop."""

    def __init__(
        self,
        apps: AppService,
        functions: FunctionService,
        environments: EnvironmentService,
        tasks: TaskService,
        deployments: Deployments,
        *,
        public_url: Callable[[], str],
    ) -> None:
        self._apps = apps
        self._functions = functions
        self._environments = environments
        self._tasks = tasks
        self._deployments = deployments
        self._public_url = public_url

    def _environment(self, name: str, ctx: Context) -> str:
        return self._environments.resolve(name or ctx.environment).name

    def _page(self, app_id: str) -> str:
        return f"{self._public_url()}/apps/{app_id}"

    async def AppCreate(
        self, request: api_pb2.AppCreateRequest, ctx: Context
    ) -> api_pb2.AppCreateResponse:
        app = await self._apps.create(
            description=request.description,
            environment=self._environment(request.environment_name, ctx),
            state=_creation_state(request.app_state),
            tags=dict(request.tags),
            key=ctx.idempotency_key,
        )
        page = self._page(app.app_id)
        return api_pb2.AppCreateResponse(
            app_id=app.app_id, app_page_url=page, app_logs_url=f"{page}/logs"
        )

    async def AppHeartbeat(self, request: api_pb2.AppHeartbeatRequest, ctx: Context) -> Empty:
        self._apps.heartbeat(request.app_id)
        return Empty()

    async def AppPublish(
        self, request: api_pb2.AppPublishRequest, ctx: Context
    ) -> api_pb2.AppPublishResponse:
        state = member(AppState, request.app_state, "app_state") if request.app_state else None
        self._check_layout(request)
        published_at = self._tasks.now()  # what is older than this, clients stop for "recreate"
        app, is_changed = await self._deployments.publish(
            request.app_id,
            state=state,
            name=request.name,
            layout=Layout(dict(request.function_ids), dict(request.class_ids)),
            definitions=dict(request.definition_ids),
            tags=dict(request.tags),
            staged=request.staged,
            deployment=Deployment(
                version=0,
                deployed_at=0.0,
                client_version=request.client_version or ctx.client_version,
                tag=request.deployment_tag,
                commit_hash=request.commit_info.commit_hash,
                commit_dirty=request.commit_info.dirty,
            ),
        )
        deployed_at = (app.deployed_at or published_at) if is_changed else 0.0
        return api_pb2.AppPublishResponse(url=self._page(app.app_id), deployed_at=deployed_at)

    async def AppRollback(
        self, request: api_pb2.AppRollbackRequest, ctx: Context
    ) -> api_pb2.AppRollbackResponse:
        app = await self._deployments.roll_back(request.app_id, request.version, ctx.client_version)
        return api_pb2.AppRollbackResponse(url=self._page(app.app_id), deployed_at=app.deployed_at)

    async def AppRollover(
        self, request: api_pb2.AppRolloverRequest, ctx: Context
    ) -> api_pb2.AppRolloverResponse:
        app = await self._deployments.roll_over(request.app_id, ctx.client_version)
        return api_pb2.AppRolloverResponse(url=self._page(app.app_id), deployed_at=app.deployed_at)

    async def AppPromote(
        self, request: api_pb2.AppPromoteRequest, ctx: Context
    ) -> api_pb2.AppPromoteResponse:
        app = await self._deployments.promote(request.app_id, request.version, ctx.client_version)
        return api_pb2.AppPromoteResponse(url=self._page(app.app_id), deployed_at=app.deployed_at)

    def _check_layout(self, request: api_pb2.AppPublishRequest) -> None:
        for function_id in request.function_ids.values():
            self._functions.get(function_id).require_spec()
        for class_id in request.class_ids.values():
            self._functions.get_class(class_id)

    async def AppClientDisconnect(
        self, request: api_pb2.AppClientDisconnectRequest, ctx: Context
    ) -> Empty:
        await self._apps.client_disconnected(request.app_id, request.reason)
        return Empty()

    async def AppStop(self, request: api_pb2.AppStopRequest, ctx: Context) -> Empty:
        await self._apps.stop_app(request.app_id, "stopped by its owner")
        return Empty()

    async def AppGetOrCreate(
        self, request: api_pb2.AppGetOrCreateRequest, ctx: Context
    ) -> api_pb2.AppGetOrCreateResponse:
        app = await self._get_or_create(request, ctx)
        return api_pb2.AppGetOrCreateResponse(app_id=app.app_id, handle_metadata=_handle(app))

    async def _get_or_create(self, request: api_pb2.AppGetOrCreateRequest, ctx: Context) -> App:
        if request.app_name.startswith("ap-") and self._apps.find(request.app_name):
            return self._apps.get(request.app_name)
        environment = self._environment(request.environment_name, ctx)
        app = self._apps.deployed(request.app_name, environment)
        if app is not None:
            return app
        if request.object_creation_type == api_pb2.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
            return await self._apps.create(
                description=request.app_name,
                environment=environment,
                state=AppState.DEPLOYED,
                tags={},
                name=request.app_name,
            )
        raise NotFoundError(
            f"App {request.app_name!r} not found in environment {environment!r}. "
            "Deploy it, or pass create_if_missing=True."
        )

    async def AppGetByDeploymentName(
        self, request: api_pb2.AppGetByDeploymentNameRequest, ctx: Context
    ) -> api_pb2.AppGetByDeploymentNameResponse:
        environment = self._environment(request.environment_name, ctx)
        current = self._apps.deployed(request.name, environment)
        previous = self._apps.last_stopped(request.name, environment)
        response = api_pb2.AppGetByDeploymentNameResponse(
            app_id=current.app_id if current else "",
            previous_app_id=previous.app_id if previous else "",
            environment_name=environment,
        )
        if current or previous:
            response.lifecycle.CopyFrom(lifecycle(current or previous))
        return response

    async def AppGetLayout(
        self, request: api_pb2.AppGetLayoutRequest, ctx: Context
    ) -> api_pb2.AppGetLayoutResponse:
        app = self._apps.get(request.app_id)
        records = [self._functions.get(item) for item in app.layout.function_ids.values()]
        return api_pb2.AppGetLayoutResponse(app_layout=layout_message(app.layout, records))

    async def AppGetLifecycle(
        self, request: api_pb2.AppGetLifecycleRequest, ctx: Context
    ) -> api_pb2.AppGetLifecycleResponse:
        return api_pb2.AppGetLifecycleResponse(lifecycle=lifecycle(self._apps.get(request.app_id)))

    async def AppGetInfo(
        self, request: api_pb2.AppGetInfoRequest, ctx: Context
    ) -> api_pb2.AppGetInfoResponse:
        app = self._apps.get(request.app_id)
        response = api_pb2.AppGetInfoResponse(info=_handle(app))
        for tag, function_id in app.layout.function_ids.items():
            record = self._functions.get(function_id)
            is_server = record.spec is not None and record.spec.is_server
            named = response.info.servers if is_server else response.info.functions
            named[tag] = function_id
            function_summary(record, response.function_info_summaries[function_id])
        return response

    async def AppList(
        self, request: api_pb2.AppListRequest, ctx: Context
    ) -> api_pb2.AppListResponse:
        environment = self._environment(request.environment_name, ctx)
        response = api_pb2.AppListResponse()
        for app in self._apps.list(environment):
            response.apps.add(
                app_id=app.app_id,
                description=app.description,
                name=app.name,
                state=api_pb2.AppState.ValueType(int(app.state)),
                n_running_tasks=len(self._tasks.of_app(app.app_id)),
                created_at=app.created_at,
                stopped_at=app.stopped_at,
                metadata=_handle(app),
            )
        return response

    async def ObjectSuggest(
        self, request: api_pb2.ObjectSuggestRequest, ctx: Context
    ) -> api_pb2.ObjectSuggestResponse:
        environment = self._environment(request.environment_name, ctx)
        apps = [app for app in self._apps.all_deployed(environment) if ctx.may_see(app.app_id)]
        names = self._names(apps, request.kind)
        limit = request.limit or _SUGGESTIONS
        found = await asyncio.to_thread(suggest, request.query, names, limit)
        return api_pb2.ObjectSuggestResponse(
            suggestions=[
                api_pb2.ObjectSuggestion(app_name=each.app, object_name=each.name) for each in found
            ]
        )

    def _names(self, apps: Iterable[App], kind: int) -> list[Name]:
        """What these apps have of that kind. Raises ``InvalidError`` for one that is none."""
        kinds = api_pb2.ObjectSuggestRequest
        if kind == kinds.OBJECT_SUGGEST_KIND_APP:
            return [Name("", app.name) for app in apps]
        if kind not in (kinds.OBJECT_SUGGEST_KIND_FUNCTION, kinds.OBJECT_SUGGEST_KIND_SERVER):
            raise InvalidError(f"kind cannot be {kind}; there are apps, functions and servers.")
        found: list[Name] = []
        for app in apps:
            for tag, function_id in app.layout.function_ids.items():
                record = self._functions.find(function_id)
                is_server = bool(record and record.spec and record.spec.is_server)
                if is_server == (kind == kinds.OBJECT_SUGGEST_KIND_SERVER):
                    found.append(Name(app.name, tag))
        return found

    async def AppDeploymentHistory(
        self, request: api_pb2.AppDeploymentHistoryRequest, ctx: Context
    ) -> api_pb2.AppDeploymentHistoryResponse:
        app = self._apps.get(request.app_id)
        response = api_pb2.AppDeploymentHistoryResponse(production_app_version=app.version)
        for item in reversed(app.deployments):
            entry = response.app_deployment_histories.add(
                app_id=app.app_id,
                version=item.version,
                client_version=item.client_version,
                deployed_at=item.deployed_at,
                deployed_by="homeport",
                tag=item.tag,
                rollback_version=item.rollback_version,
                rollback_allowed=item.definitions is not None and item.version != app.version,
            )
            if item.commit_hash:
                entry.commit_info.commit_hash = item.commit_hash
                entry.commit_info.dirty = item.commit_dirty
        return response

    async def AppSetTags(self, request: api_pb2.AppSetTagsRequest, ctx: Context) -> Empty:
        await self._apps.set_tags(request.app_id, dict(request.tags))
        return Empty()

    async def AppGetTags(
        self, request: api_pb2.AppGetTagsRequest, ctx: Context
    ) -> api_pb2.AppGetTagsResponse:
        return api_pb2.AppGetTagsResponse(tags=self._apps.get(request.app_id).tags)


def _creation_state(number: int) -> AppState:
    if number == 0:
        return AppState.EPHEMERAL
    if number in (AppState.EPHEMERAL, AppState.DETACHED, AppState.INITIALIZING):
        return AppState(number)
    raise InvalidError(f"an app cannot be created in state {number}")


def _handle(app: App) -> api_pb2.AppHandleMetadata:
    return api_pb2.AppHandleMetadata(
        app_id=app.app_id,
        description=app.description,
        environment_name=app.environment,
        lifecycle=lifecycle(app),
    )
