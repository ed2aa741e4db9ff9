"""Apps in the protocol's messages."""

from __future__ import annotations

from modal_proto import api_pb2

from homeport.apps.model import App


def lifecycle(app: App | None) -> api_pb2.AppLifecycle:
    """When an app was made, deployed and stopped; empty without one."""
    if app is None:
        return api_pb2.AppLifecycle()
    return api_pb2.AppLifecycle(
        app_state=api_pb2.AppState.ValueType(int(app.state)),
        created_at=app.created_at,
        created_by="homeport",
        deployed_at=app.deployed_at,
        deployed_by="homeport" if app.deployments else "",
        version=app.version,
        stopped_at=app.stopped_at,
    )
