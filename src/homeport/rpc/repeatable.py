"""Reviewed: which RPCs need no memory of their answers, and which end with their caller."""

from __future__ import annotations

from typing import Final

_REPEATABLE: Final = """
    AppCountLogs AppDeploymentHistory AppFetchLogs AppGetByDeploymentName AppGetInfo
    AppGetLayout AppGetLifecycle AppGetObjects AppGetTags AppGetTimeRangeStats AppHeartbeat
    AppList AppLookup AttemptAwait AuditLogCount AuditLogList AuditLogPlan
    AuditLogSettingsGet AuthTokenGet BlobGet ClassGet CliCommandSuggest ClientHello
    ClusterGet ClusterList ClusterReservationList ContainerExecWait ContainerHeartbeat
    ContainerHello ContainerLog CurlGetAuthToken DictContains DictGet DictGetById
    DictHeartbeat DictLen DictList DomainList EndpointGetByName EndpointGetInfo
    EndpointGetLibrary EndpointGetLifecycle EndpointList EnvironmentBillingSummary
    EnvironmentGetBudget EnvironmentGetManaged EnvironmentGetRoles EnvironmentList
    FlashContainerList FunctionBlobGet FunctionCallCount FunctionCallFetch
    FunctionCallFromId FunctionCallGetInfo FunctionCallList FunctionGet FunctionGetById
    FunctionGetCallGraph FunctionGetCurrentStats FunctionGetDynamicConcurrency
    FunctionGetFlashAuthToken FunctionGetMetrics FunctionGetOutputs
    FunctionGetSchedulingParams FunctionGetSerialized FunctionGetTimeRangeStats
    FunctionListVariants ImageBuildChainGet ImageFromId ImageGetByTag ImageListTags
    ImageTagRevisions MapAwait MapCheckInputs MetricsGetInfo MountBatchedCheckExistence
    MountPutFile ObjectSuggest PersistentSandboxGet PersistentSandboxTunnelsList ProxyGet
    ProxyList QueueGetById QueueHeartbeat QueueLen QueueList QueueNextItems
    SandboxGetCommandRouterAccess SandboxGetExitSnapshot SandboxGetExitSnapshotV2
    SandboxGetFromName SandboxGetFromNameV2 SandboxGetResourceUsage SandboxGetStats
    SandboxGetStatsV2 SandboxGetTaskId SandboxGetTaskIdV2 SandboxGetTimeRangeStats
    SandboxGetTunnels SandboxGetTunnelsV2 SandboxList SandboxListV2
    SandboxSnapshotFsAsyncGet SandboxSnapshotGet SandboxSnapshotWait SandboxTagsGet
    SandboxTagsGetV2 SandboxWait SandboxWaitUntilReady SandboxWaitV2 SecretGetInfo
    SecretList ServerCountRequests ServerGetMetrics ServerGetTimeRangeStats
    ServerRequestFetch ServiceUserInfo ServiceUserList SharedVolumeGetFile
    SharedVolumeHeartbeat SharedVolumeList SharedVolumeListFiles TaskCurrentInputs
    TaskGetCommandRouterAccess TaskGetInfo TaskList TemplateList TokenFlowWait TokenInfoGet
    TokensList VolumeGetById VolumeGetFile VolumeGetFile2 VolumeHeartbeat VolumeList
    VolumeReload WebhookTokenEnvironmentList WebhookTokenList WebhookTokenListForEnvironment
    WorkspaceBillingRates WorkspaceBillingSummary WorkspaceDashboardUrlGet
    WorkspaceMembersList WorkspaceNameLookup WorkspaceSettings
"""

REPEATABLE: Final = frozenset(_REPEATABLE.split())
"""These read, wait, say "alive" or store content under its hash: carrying one out twice is harmless,
and remembering its answer would only cost memory (or, for a poll, be wrong)."""

ENDS_WITH_CALLER: Final = frozenset({"FunctionGetInputs", "QueueGet"})
"""These wait for something and then take it. When nobody waits for the answer any more they are
cancelled, lest they take it for no one; every other remembered call runs to its end."""
