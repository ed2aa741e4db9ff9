"""Bound variants: a function with parameters and options of its own."""

from __future__ import annotations

from modal_proto import api_pb2

from homeport.functions.model import FunctionRecord
from homeport.functions.wire import (
    canonical_params,
    created_handle,
    definition_id,
    function_data,
    spec_of,
    with_options,
)
from homeport.kernel import ids
from homeport.web.wire import describe


def bound(
    base: FunctionRecord, serialized_params: bytes, options: bytes, created_at: float
) -> FunctionRecord:
    """The variant of ``base`` for these parameters and options (a serialized ``FunctionOptions``).

    Its id follows from them and the id of ``base``.
    """
    base_spec = base.require_spec()
    parsed = api_pb2.FunctionOptions.FromString(options)
    definition = with_options(api_pb2.Function.FromString(base.definition), parsed)
    chosen = parsed.resources.gpu_config.count > 0
    gpu_fallbacks = [] if chosen else base_spec.gpu_fallbacks
    function_id = ids.derive(
        ids.FUNCTION,
        base.function_id,
        canonical_params(serialized_params),
        parsed.SerializeToString(deterministic=True),
    )
    handle = created_handle(definition, base.app_id)
    describe(handle, definition)
    handle.base_function_id = base.function_id
    return FunctionRecord(
        function_id=function_id,
        app_id=base.app_id,
        tag=base.tag,
        handle=handle.SerializeToString(),
        created_at=created_at,
        spec=spec_of(
            definition,
            function_id=function_id,
            app_id=base.app_id,
            client_version=base_spec.client_version,
            base_function_id=base.function_id,
            serialized_params=serialized_params,
            web=base_spec.web,
            gpu_fallbacks=gpu_fallbacks,
        ),
        definition=definition.SerializeToString(),
        data=function_data(definition, gpu_fallbacks).SerializeToString(),
        definition_id=definition_id(definition, base.definition_id.encode()),
        options=options,
    )


def rebound(variant: FunctionRecord, base: FunctionRecord) -> FunctionRecord:
    """``variant`` as one of another version of its function."""
    params = variant.require_spec().serialized_params
    return bound(base, params, variant.options, variant.created_at)


def pinned(version: FunctionRecord) -> FunctionRecord:
    """A version of a function as one that stays, whatever is deployed later.

    It runs when it is called, and by nothing else: no schedule, no minimum of containers.
    """
    spec = version.require_spec()
    function = api_pb2.Function.FromString(version.definition)
    function.ClearField("schedule")
    function.ClearField("warm_pool_size")
    function.autoscaler_settings.ClearField("min_containers")
    function_id = ids.derive(ids.FUNCTION, version.function_id, "version", version.definition_id)
    handle = api_pb2.FunctionHandleMetadata.FromString(version.handle)
    handle.base_function_id = version.function_id
    return FunctionRecord(
        function_id=function_id,
        app_id=version.app_id,
        tag=version.tag,
        handle=handle.SerializeToString(),
        created_at=version.created_at,
        spec=spec_of(
            function,
            function_id=function_id,
            app_id=version.app_id,
            client_version=spec.client_version,
            gpu_fallbacks=spec.gpu_fallbacks,
        ),
        definition=function.SerializeToString(),
        data=function_data(function, spec.gpu_fallbacks).SerializeToString(),
        definition_id=version.definition_id,
    )
