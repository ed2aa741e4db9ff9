"""Conversions between the client's image messages and our records."""

from __future__ import annotations

import posixpath

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2

from homeport.images.model import (
    BuildInputs,
    ContextFile,
    FunctionStep,
    ImageRecord,
    ImageRequest,
    ImageStatus,
    NamedImage,
)
from homeport.images.service import BuildEvent
from homeport.kernel.errors import InvalidError
from homeport.link.messages import LogEntry, VolumeRef

_REGISTRY_KINDS = {
    api_pb2.REGISTRY_AUTH_TYPE_AWS: "aws",
    api_pb2.REGISTRY_AUTH_TYPE_GCP: "gcp",
    api_pb2.REGISTRY_AUTH_TYPE_STATIC_CREDS: "static",
}


def image_request(request: api_pb2.ImageGetOrCreateRequest) -> ImageRequest:
    """What the client asks for. Raises ``InvalidError`` for volumes where none can be mounted."""
    image = request.image
    return ImageRequest(
        dockerfile=list(image.dockerfile_commands),
        bases=[(base.docker_tag, base.image_id) for base in image.base_images],
        context_files=[ContextFile(file.filename, file.data) for file in image.context_files],
        context_mount_id=image.context_mount_id,
        build_args=dict(image.build_args),
        secret_ids=list(image.secret_ids),
        builder_version=request.builder_version,
        app_id=request.app_id,
        force_build=request.force_build,
        ignore_cache=request.ignore_cache,
        function=_function_step(image),
        volumes=_volumes(image),
        inputs=BuildInputs(
            request.build_function_id,
            _REGISTRY_KINDS.get(image.image_registry_config.registry_auth_type, ""),
            image.image_registry_config.secret_id,
            gpu=image.gpu_config.gpu_type if image.gpu_config.count else "",
        ),
    )


def _volumes(image: api_pb2.Image) -> list[VolumeRef]:
    """Those of RUN steps; a function's are in its own definition."""
    if image.HasField("build_function"):
        return []
    refs = [
        VolumeRef(
            mount.volume_id,
            posixpath.normpath("/" + mount.mount_path.lstrip("/")),
            mount.read_only,
            mount.sub_path.strip("/"),
        )
        for mount in image.volume_mounts
    ]
    for ref in refs:
        others = [other.path for other in refs if other is not ref]
        if ref.path == "/" or any((ref.path + "/").startswith(path + "/") for path in others):
            raise InvalidError(
                f"a volume cannot be mounted at {ref.path}, inside or in place of something else"
            )
    return sorted(refs, key=lambda ref: ref.path)


def _function_step(image: api_pb2.Image) -> FunctionStep | None:
    if not image.HasField("build_function"):
        return None
    function = image.build_function
    if not function.HasField("input"):
        return FunctionStep(function.definition, function.globals)
    given = function.input
    return FunctionStep(
        function.definition,
        function.globals,
        given.args,
        given.args_blob_id,
        int(given.data_format),
    )


def result(record: ImageRecord) -> api_pb2.GenericResult:
    """The end of the image's build; without a status while it goes on."""
    if record.status is ImageStatus.SUCCEEDED:
        return api_pb2.GenericResult(status=api_pb2.GenericResult.GENERIC_STATUS_SUCCESS)
    if record.status is ImageStatus.FAILED:
        return api_pb2.GenericResult(
            status=api_pb2.GenericResult.GENERIC_STATUS_FAILURE, exception=record.error
        )
    return api_pb2.GenericResult()


def metadata(record: ImageRecord) -> api_pb2.ImageMetadata:
    """What clients are told about a built image; absent facts stay unset."""
    return api_pb2.ImageMetadata(
        python_version_info=record.python_version_info or None,
        workdir=record.config.workdir or None,
        libc_version_info=record.libc_version or None,
        image_builder_version=record.builder_version,
    )


def created(record: ImageRecord) -> api_pb2.ImageGetOrCreateResponse:
    """The answer to a request for an image: with a result only if it is there already."""
    if record.status is not ImageStatus.SUCCEEDED:
        return api_pb2.ImageGetOrCreateResponse(image_id=record.image_id)
    return api_pb2.ImageGetOrCreateResponse(
        image_id=record.image_id, result=result(record), metadata=metadata(record)
    )


def joined(event: BuildEvent) -> api_pb2.ImageJoinStreamingResponse:
    """One message to a follower of a build."""
    outcome = event.outcome
    if outcome is None:
        return api_pb2.ImageJoinStreamingResponse(
            entry_id=event.entry_id, task_logs=[_log(entry) for entry in event.entries]
        )
    succeeded = outcome.status is ImageStatus.SUCCEEDED
    return api_pb2.ImageJoinStreamingResponse(
        result=result(outcome), metadata=metadata(outcome) if succeeded else None, eof=True
    )


def build_step(record: ImageRecord) -> api_pb2.ImageBuildStep:
    """One image of a build chain."""
    return api_pb2.ImageBuildStep(
        image_id=record.image_id,
        started_at=_timestamp(record.started_at),
        finished_at=_timestamp(record.finished_at),
        builder_app_id=record.app_id,
        builder_task_id=record.build_id,
    )


def tag(named: NamedImage, first_published_at: float) -> api_pb2.ImageListTagsItem:
    """A name in a listing."""
    return api_pb2.ImageListTagsItem(
        tag=named.name,
        image_id=named.image_id,
        revision_id=named.revision_id,
        created_at=first_published_at,
        updated_at=named.created_at,
        last_published_by=named.published_by,
    )


def revision(named: NamedImage) -> api_pb2.ImageTagRevisionsItem:
    """One publication of a name."""
    return api_pb2.ImageTagRevisionsItem(
        image_id=named.image_id,
        revision_id=named.revision_id,
        created_at=named.created_at,
        published_by=named.published_by,
    )


def _log(entry: LogEntry) -> api_pb2.TaskLogs:
    return api_pb2.TaskLogs(
        data=entry.data,
        file_descriptor=api_pb2.FileDescriptor.ValueType(entry.fd),
        timestamp=entry.time_ns / 1e9,
        timestamp_ns=entry.time_ns,
    )


def _timestamp(seconds: float) -> Timestamp | None:
    if not seconds:
        return None
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp
