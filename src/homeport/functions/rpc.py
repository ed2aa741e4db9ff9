"""RPC handlers of functions and classes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from modal_proto import api_pb2

from homeport.apps.deployments import Deployments
from homeport.apps.model import App
from homeport.apps.service import AppService
from homeport.environments.service import EnvironmentService
from homeport.functions.model import Autoscaler, ClassRecord, FunctionRecord, FunctionSpec
from homeport.functions.service import FunctionService
from homeport.functions.variant_wire import bound, pinned
from homeport.functions.variants import Cursor, page
from homeport.functions.wire import (
    autoscaler_message,
    autoscaler_of,
    created_handle,
    definition_id,
    function_data,
    function_of,
    precreated_handle,
    schedule_of,
    spec_of,
)
from homeport.kernel import ids
from homeport.kernel.clock import Clock
from homeport.kernel.errors import InvalidError, NotFoundError, UnimplementedError
from homeport.kernel.gpus import wished
from homeport.rpc.context import Context
from homeport.web.service import WebRoutes
from homeport.web.wire import announce, describe, mark_taken, settle, taken


class PoolStats(Protocol):
    """Numbers of a function's pool of containers."""

    backlog: int
    tasks: int
    running_inputs: int
    headroom: int


class Pools(Protocol):
    """What the scheduler tells and is told about a function's containers."""

    def stats(self, function_id: str) -> PoolStats: ...

    def containers(self, function_id: str) -> int:
        """How many a function has, without its variants."""
        ...

    def override(self, function_id: str, changes: Autoscaler) -> Autoscaler:
        """Change scaling until the next deploy; returns the settings in force."""
        ...

    def settings(self, function_id: str) -> Autoscaler: ...

    def check_placeable(self, spec: FunctionSpec) -> list[str]:
        """Sentences about what this installation cannot give in full.

        Raises ``InvalidError`` for what it cannot give at all (a GPU no node has).
        """
        ...


class FunctionsRpc:
    """Functions and classes: announce, create, look up, bind, scale."""

    def __init__(
        self,
        functions: FunctionService,
        apps: AppService,
        environments: EnvironmentService,
        pools: Pools,
        routes: WebRoutes,
        clock: Clock,
        deployments: Deployments,
        secret_mark: Callable[[Sequence[str]], Awaitable[bytes]],
    ) -> None:
        self._functions = functions
        self._apps = apps
        self._environments = environments
        self._pools = pools
        self._routes = routes
        self._clock = clock
        self._deployments = deployments
        self._secret_mark = secret_mark

    async def FunctionPrecreate(
        self, request: api_pb2.FunctionPrecreateRequest, ctx: Context
    ) -> api_pb2.FunctionPrecreateResponse:
        app = self._apps.require_live(request.app_id)
        function_id = request.existing_function_id or ids.derive(
            ids.FUNCTION, app.app_id, request.function_name
        )
        handle = precreated_handle(request, app.app_id)
        announce(handle, app, self._routes, request.webhook_config, request.method_definitions)
        await self._functions.announce(
            FunctionRecord(
                function_id=function_id,
                app_id=app.app_id,
                tag=request.function_name,
                handle=handle.SerializeToString(),
                created_at=self._clock.now(),
            )
        )
        return api_pb2.FunctionPrecreateResponse(function_id=function_id, handle_metadata=handle)

    async def FunctionCreate(
        self, request: api_pb2.FunctionCreateRequest, ctx: Context
    ) -> api_pb2.FunctionCreateResponse:
        app = self._apps.require_live(request.app_id)
        function, gpu_fallbacks = function_of(request)
        _refuse_unbuilt(function)
        web = settle(function, app, self._routes)
        stolen = taken(web, app, self._routes)
        function_id = request.existing_function_id or ids.derive(
            ids.FUNCTION, app.app_id, function.function_name, definition_id(function)
        )
        schedule = function.schedule if function.HasField("schedule") else request.schedule
        spec = spec_of(
            function,
            function_id=function_id,
            app_id=app.app_id,
            client_version=ctx.client_version,
            schedule=schedule_of(schedule),
            web=web,
            gpu_fallbacks=gpu_fallbacks,
        )
        warnings = self._pools.check_placeable(spec)
        salt = await self._secret_mark(spec.secret_ids)
        if gpu_fallbacks:
            salt += f"/{wished(gpu_fallbacks)}".encode()
        handle = created_handle(function, app.app_id, salt)
        describe(handle, function)
        data = function_data(function, gpu_fallbacks)
        record = FunctionRecord(
            function_id=function_id,
            app_id=app.app_id,
            tag=function.function_name,
            handle=handle.SerializeToString(),
            created_at=self._clock.now(),
            spec=spec,
            definition=function.SerializeToString(),
            data=data.SerializeToString(),
            definition_id=handle.definition_id,
        )
        if function_id in app.layout.function_ids.values():
            await self._functions.draft(record)  # the published one serves until the next publish
        else:
            await self._functions.save(record)
        mark_taken(function, stolen)
        return api_pb2.FunctionCreateResponse(
            function_id=function_id,
            function=function,
            handle_metadata=handle,
            function_data=data,
            server_warnings=[api_pb2.Warning(message=text) for text in warnings],
        )

    async def FunctionGet(
        self, request: api_pb2.FunctionGetRequest, ctx: Context
    ) -> api_pb2.FunctionGetResponse:
        environment = self._environments.resolve(request.environment_name or ctx.environment).name
        app = self._apps.require_deployed(request.app_name, environment)
        record = await self._look_up(app, request.object_tag, request.app_version)
        if record is None:
            raise NotFoundError(_missing_function(request, sorted(app.layout.function_ids)))
        response = api_pb2.FunctionGetResponse(function_id=record.function_id)
        response.handle_metadata.ParseFromString(record.handle)
        response.function.ParseFromString(record.data)
        return response

    async def _look_up(self, app: App, tag: str, version: int) -> FunctionRecord | None:
        """A function of the app as it is now, or (``version`` > 0) as it was in a version of it."""
        if not version:
            function_id = app.layout.function_ids.get(tag)
            return None if function_id is None else self._functions.get(function_id)
        found = await self._deployments.definition_of(app, version, tag)
        if found is None:
            return None
        record = pinned(found)
        return self._functions.find(record.function_id) or await self._functions.save(record)

    async def FunctionGetById(
        self, request: api_pb2.FunctionGetByIdRequest, ctx: Context
    ) -> api_pb2.FunctionGetByIdResponse:
        record = self._functions.get(request.function_id)
        response = api_pb2.FunctionGetByIdResponse()
        response.handle_metadata.ParseFromString(record.handle)
        response.function.ParseFromString(record.data)
        return response

    async def FunctionBindParams(
        self, request: api_pb2.FunctionBindParamsRequest, ctx: Context
    ) -> api_pb2.FunctionBindParamsResponse:
        base = self._functions.get(request.function_id)
        options = request.function_options.SerializeToString(deterministic=True)
        record = bound(base, request.serialized_params, options, self._clock.now())
        if self._functions.find(record.function_id) is None or self._is_outdated(record):
            self._pools.check_placeable(record.require_spec())
            await self._functions.save(record)
        response = api_pb2.FunctionBindParamsResponse(bound_function_id=record.function_id)
        response.handle_metadata.ParseFromString(record.handle)
        return response

    def _is_outdated(self, record: FunctionRecord) -> bool:
        known = self._functions.get(record.function_id)
        return known.definition != record.definition

    async def FunctionListVariants(
        self, request: api_pb2.FunctionListVariantsRequest, ctx: Context
    ) -> api_pb2.FunctionListVariantsResponse:
        base = self._functions.get(request.function_id)
        ctx.require_app(base.app_id)
        cursor = None
        if request.HasField("cursor"):
            cursor = Cursor(request.cursor.created_before, request.cursor.function_id)
        variants, following, is_ranked = page(
            self._functions.variants_of(base.function_id),
            limit=request.limit,
            cursor=cursor,
            containers=self._pools.containers,
        )
        response = api_pb2.FunctionListVariantsResponse(ordered_by_task_count=is_ranked)
        for record in variants:
            info = response.infos.add(
                function_id=record.function_id,
                serialized_params=record.require_spec().serialized_params,
            )
            if record.options:
                info.function_options.ParseFromString(record.options)
        if following is not None:
            response.next_cursor.created_before = following.created_at
            response.next_cursor.function_id = following.function_id
        return response

    # ── classes ─────────────────────────────────────────────────────────────────────────────

    async def ClassCreate(
        self, request: api_pb2.ClassCreateRequest, ctx: Context
    ) -> api_pb2.ClassCreateResponse:
        app = self._apps.require_live(request.app_id)
        class_id = request.existing_class_id or (
            ids.derive(ids.CLASS, app.app_id, ctx.idempotency_key)
            if ctx.idempotency_key
            else ids.new(ids.CLASS)
        )
        await self._functions.save_class(ClassRecord(class_id, app.app_id))
        return api_pb2.ClassCreateResponse(
            class_id=class_id, handle_metadata=api_pb2.ClassHandleMetadata()
        )

    async def ClassGet(
        self, request: api_pb2.ClassGetRequest, ctx: Context
    ) -> api_pb2.ClassGetResponse:
        environment = self._environments.resolve(request.environment_name or ctx.environment).name
        app = self._apps.require_deployed(request.app_name, environment)
        class_id = app.layout.class_ids.get(request.object_tag)
        if class_id is None:
            known = ", ".join(sorted(app.layout.class_ids)) or "none"
            raise NotFoundError(
                f"App {request.app_name!r} has no class {request.object_tag!r} "
                f"(its classes: {known})"
            )
        return api_pb2.ClassGetResponse(
            class_id=class_id, handle_metadata=api_pb2.ClassHandleMetadata()
        )

    # ── scaling ─────────────────────────────────────────────────────────────────────────────

    async def FunctionUpdateSchedulingParams(
        self, request: api_pb2.FunctionUpdateSchedulingParamsRequest, ctx: Context
    ) -> api_pb2.FunctionUpdateSchedulingParamsResponse:
        self._functions.get(request.function_id)
        changes = autoscaler_of(request.settings)
        if request.warm_pool_size_override:
            changes = Autoscaler(min_containers=request.warm_pool_size_override).merged(changes)
        settings = self._pools.override(request.function_id, changes)
        return api_pb2.FunctionUpdateSchedulingParamsResponse(
            current_settings=autoscaler_message(settings)
        )

    async def FunctionGetSchedulingParams(
        self, request: api_pb2.FunctionGetSchedulingParamsRequest, ctx: Context
    ) -> api_pb2.FunctionGetSchedulingParamsResponse:
        self._functions.get(request.function_id)
        response = api_pb2.FunctionGetSchedulingParamsResponse()
        response.autoscaler_configuration.settings.CopyFrom(
            autoscaler_message(self._pools.settings(request.function_id))
        )
        return response

    async def FunctionGetCurrentStats(
        self, request: api_pb2.FunctionGetCurrentStatsRequest, ctx: Context
    ) -> api_pb2.FunctionStats:
        self._functions.get(request.function_id)
        stats = self._pools.stats(request.function_id)
        return api_pb2.FunctionStats(
            backlog=stats.backlog,
            num_total_tasks=stats.tasks,
            num_running_inputs=stats.running_inputs,
            input_headroom=stats.headroom,
        )


def _missing_function(request: api_pb2.FunctionGetRequest, tags: list[str]) -> str:
    names = ", ".join(tag.removesuffix(".*") for tag in tags) or "none"
    return (
        f"App {request.app_name!r} has no function {request.object_tag.removesuffix('.*')!r} "
        f"(it has: {names}). Deploy the app again if it was added since."
    )


def _refuse_unbuilt(function: api_pb2.Function) -> None:
    """Refuse what a definition asks for and the platform does not have, by name."""
    name = function.function_name
    wanted = {
        "servers that run an image's own command": function.http_config.HasField(
            "lift_and_shift_config"
        ),
        "S3 mounts of old clients": bool(function.s3_mounts),
        "Proxy": bool(function.proxy_id),
        "clustered functions": function._experimental_group_size > 1,  # pyright: ignore[reportPrivateUsage]
        "interactive mode (-i)": function.pty_info.enabled,
    }
    for feature, is_wanted in wanted.items():
        if is_wanted:
            raise UnimplementedError(
                f"Function {name!r} uses {feature}, which Homeport does not have yet."
            )
    if not function.image_id:
        raise InvalidError(f"Function {name!r} names no image")
