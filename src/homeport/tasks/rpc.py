"""RPC handlers of tasks (the client's "containers")."""

from __future__ import annotations

from modal_proto import api_pb2

from homeport.apps.service import AppService
from homeport.environments.service import EnvironmentService
from homeport.nodes.routers import Routers
from homeport.rpc.context import Context
from homeport.tasks.service import TaskService


class TasksRpc:
    """Containers: list, look up, stop."""

    def __init__(
        self,
        tasks: TaskService,
        apps: AppService,
        environments: EnvironmentService,
        routers: Routers,
    ) -> None:
        self._tasks = tasks
        self._apps = apps
        self._environments = environments
        self._routers = routers

    async def TaskList(
        self, request: api_pb2.TaskListRequest, ctx: Context
    ) -> api_pb2.TaskListResponse:
        environment = self._environments.resolve(request.environment_name or ctx.environment).name
        response = api_pb2.TaskListResponse()
        for record in self._tasks.list():
            app = self._apps.find(record.app_id)
            if app is None or (request.app_id and record.app_id != request.app_id):
                continue
            if not request.app_id and app.environment != environment:
                continue
            response.tasks.add(
                task_id=record.task_id,
                app_id=record.app_id,
                app_description=app.description,
                started_at=record.started_at,
                enqueued_at=record.enqueued_at,
            )
        return response

    async def TaskGetInfo(
        self, request: api_pb2.TaskGetInfoRequest, ctx: Context
    ) -> api_pb2.TaskGetInfoResponse:
        record = await self._tasks.get(request.task_id)
        response = api_pb2.TaskGetInfoResponse(app_id=record.app_id)
        response.info.id = record.task_id
        response.info.enqueued_at = record.enqueued_at
        response.info.started_at = record.started_at
        response.info.finished_at = record.finished_at
        return response

    async def TaskGetCommandRouterAccess(
        self, request: api_pb2.TaskGetCommandRouterAccessRequest, ctx: Context
    ) -> api_pb2.TaskGetCommandRouterAccessResponse:
        node_id = self._tasks.node_of(request.task_id)
        url, jwt = self._routers.access(request.task_id, node_id, ctx)
        return api_pb2.TaskGetCommandRouterAccessResponse(url=url, jwt=jwt)

    async def ContainerStop(
        self, request: api_pb2.ContainerStopRequest, ctx: Context
    ) -> api_pb2.ContainerStopResponse:
        await self._tasks.stop_task(request.task_id, graceful=request.graceful)
        return api_pb2.ContainerStopResponse()
