"""Gives web functions their addresses: in the definition, and in what clients are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modal_proto import api_pb2

from homeport.apps.model import App
from homeport.functions.model import WebPoint
from homeport.web.naming import check_domain, is_truncated
from homeport.web.service import WebRoutes


def announce(
    handle: api_pb2.FunctionHandleMetadata,
    app: App,
    routes: WebRoutes,
    webhook: api_pb2.WebhookConfig,
    methods: Mapping[str, api_pb2.MethodDefinition],
) -> None:
    """Put the addresses of a function that is to come into ``handle``."""
    if webhook.type:
        handle.web_url = routes.url(_name(app, routes, webhook, handle.function_name))
    for name, method in methods.items():
        if method.webhook_config.type:
            host = _name(app, routes, method.webhook_config, _full(handle.function_name, name))
            handle.method_handle_metadata[name].web_url = routes.url(host)


def settle(function: api_pb2.Function, app: App, routes: WebRoutes) -> list[WebPoint]:
    """Put the addresses into ``function``, as the client shows them; returns them."""
    points: list[WebPoint] = []
    if function.webhook_config.type:
        points.append(_point(function, function.webhook_config, app, routes, ""))
    for name in sorted(function.method_definitions):
        method = function.method_definitions[name]
        if method.webhook_config.type:
            points.append(_point(method, method.webhook_config, app, routes, name, function))
    if function.is_server:
        points.append(_server(function, app, routes))
    return points


def taken(points: list[WebPoint], app: App, routes: WebRoutes) -> set[str]:
    """The addresses among ``points`` that another app has until this one is created."""
    return {routes.url(p.subdomain) for p in points if routes.is_taken(p.subdomain, app.app_id)}


def mark_taken(function: api_pb2.Function, urls: set[str]) -> None:
    """Have the client say which addresses were taken from another app."""
    for shown in (function, *function.method_definitions.values()):
        if shown.web_url in urls:
            shown.web_url_info.label_stolen = True


def describe(handle: api_pb2.FunctionHandleMetadata, function: api_pb2.Function) -> None:
    """Copy the addresses of a settled definition into its handle."""
    handle.web_url = function.web_url
    for name, method in function.method_definitions.items():
        if method.web_url:
            handle.method_handle_metadata[name].web_url = method.web_url
    handle._experimental_flash_urls.extend(function.flash_service_urls)  # pyright: ignore[reportPrivateUsage]


def _point(
    shown: Any,
    webhook: api_pb2.WebhookConfig,
    app: App,
    routes: WebRoutes,
    method: str,
    owner: api_pb2.Function | None = None,
) -> WebPoint:
    """``shown``, a function or a method definition, gets its address."""
    function_name = _full(owner.function_name, method) if owner is not None else shown.function_name
    host = _name(app, routes, webhook, function_name)
    domains = [domain.name for domain in webhook.custom_domains if domain.name]
    for domain in domains:
        check_domain(domain)
    shown.web_url = routes.url(host)
    shown.web_url_info.truncated = is_truncated(host)
    del shown.custom_domain_info[:]
    for domain in domains:
        shown.custom_domain_info.add(url=routes.url(domain))
    is_server = webhook.type == api_pb2.WEBHOOK_TYPE_WEB_SERVER
    return WebPoint(
        method=method,
        subdomain=host,
        domains=domains,
        needs_token=webhook.requires_proxy_auth,
        port=webhook.web_server_port if is_server else 0,
    )


def _server(function: api_pb2.Function, app: App, routes: WebRoutes) -> WebPoint:
    host = routes.name(app, function.function_name, function.flash_service_label, "")
    config = function.http_config
    del function.flash_service_urls[:]
    function.flash_service_urls.append(routes.url(host))
    return WebPoint(
        subdomain=host,
        needs_token=not config.unauthenticated,
        port=config.port,
        is_server=True,
        is_sticky=function.is_sessioned,
        is_h2=config.h2_enabled,
    )


def _name(app: App, routes: WebRoutes, webhook: api_pb2.WebhookConfig, function: str) -> str:
    return routes.name(app, function, webhook.requested_suffix, webhook.ephemeral_suffix)


def _full(service_function: str, method: str) -> str:
    """``Class.method`` from the tag of a class's service function."""
    return f"{service_function.removesuffix('.*')}.{method}"
