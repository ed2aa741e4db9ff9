"""Which part of the platform an RPC belongs to, by the beginning of its name."""

from __future__ import annotations

from typing import Final

_AREA_OF_PREFIX: Final[dict[str, str]] = {
    "App": "Apps",
    "AppGetLogs": "Logs",
    "AppFetchLogs": "Logs",
    "AppCountLogs": "Logs",
    "Attempt": "Calls",
    "AuditLog": "Workspace",
    "AuthToken": "Workspace",
    "Blob": "Blobs",
    "Class": "Functions",
    "Cli": "Workspace",
    "Client": "Workspace",
    "Cluster": "Clusters",
    "Container": "Containers",
    "Curl": "Web",
    "Dict": "Dicts",
    "Domain": "Web",
    "Endpoint": "Endpoints",
    "Environment": "Environments",
    "Flash": "Web",
    "Function": "Functions",
    "FunctionAsyncInvoke": "Calls",
    "FunctionCall": "Calls",
    "FunctionFinishInputs": "Calls",
    "FunctionGetCallGraph": "Calls",
    "FunctionGetInputs": "Containers",
    "FunctionGetOutputs": "Calls",
    "FunctionMap": "Calls",
    "FunctionPutInputs": "Calls",
    "FunctionPutOutputs": "Containers",
    "FunctionRetryInputs": "Calls",
    "Image": "Images",
    "Map": "Calls",
    "Metrics": "Functions",
    "Mount": "Mounts",
    "ObjectSuggest": "Workspace",
    "PersistentSandbox": "Sandboxes",
    "Proxy": "Proxies",
    "Queue": "Queues",
    "Sandbox": "Sandboxes",
    "Secret": "Secrets",
    "Server": "Web",
    "ServiceUser": "Workspace",
    "SharedVolume": "Network file systems",
    "Task": "Containers",
    "TaskClusterHello": "Clusters",
    "TemplateList": "Workspace",
    "Token": "Workspace",
    "Tunnel": "Web",
    "UserGroup": "Workspace",
    "Volume": "Volumes",
    "WebhookToken": "Web",
    "Workspace": "Workspace",
}

OTHER: Final = "Other"


def area_of(method: str) -> str:
    """The area of an RPC; the longest known prefix of its name counts."""
    fitting = [prefix for prefix in _AREA_OF_PREFIX if method.startswith(prefix)]
    return _AREA_OF_PREFIX[max(fitting, key=len)] if fitting else OTHER
