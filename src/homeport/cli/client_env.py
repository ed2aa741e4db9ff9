"""What points an official client at a home: server URL and token, as environment variables."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping

from homeport.cli import instance
from homeport.cli.trust import trust_variables
from homeport.kernel.errors import NotFoundError
from homeport.settings import Settings
from homeport.workspace import credentials


def client_variables(
    settings: Settings, url: str, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """``MODAL_SERVER_URL``, the token of this home, and what makes its certificates trusted.

    Raises ``NotFoundError`` before the first start: the server makes the token.
    """
    file = credentials.path_in(settings.home)
    try:
        found = credentials.read(settings.home)
    except OSError as error:
        raise NotFoundError(f"{file} cannot be read: {error.strerror}.") from None
    if found is None or not found.token_id:
        raise NotFoundError(
            f"There are no credentials in {settings.home} yet; the first homeport up makes them."
        )
    return {
        "MODAL_SERVER_URL": url,
        "MODAL_TOKEN_ID": found.token_id,
        "MODAL_TOKEN_SECRET": found.token_secret,
        **trust_variables(settings.home, environ),
    }


def server_url(settings: Settings) -> str:
    """The URL of the running Homeport of this home, else the one it would have."""
    up = instance.find_up(settings)
    if up is not None and up.url:
        return up.url
    server = instance.find_server(settings)
    return server.url if server else instance.local_url(settings.host, settings.port)


def client_environment(
    settings: Settings, variables: Mapping[str, str], environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """``environ`` for one run of the official CLI against this home.

    The user's own ``~/.modal.toml``, profile and OAuth login are for another server: they are set
    aside for this process only, unless ``MODAL_CONFIG_PATH`` says which file to use.
    """
    result = {k: v for k, v in environ.items() if not k.startswith("MODAL_OAUTH_")}
    if not result.get("MODAL_CONFIG_PATH"):
        result["MODAL_CONFIG_PATH"] = str(settings.home / "modal.toml")
        result.pop("MODAL_PROFILE", None)
    return {**result, **variables}


def render(variables: Mapping[str, str], style: str) -> str:
    """The variables as lines to evaluate in a shell, or as a JSON object."""
    if style == "json":
        return json.dumps(variables, indent=2)
    if style == "fish":
        return "\n".join(f"set -gx {name} {_fish(value)}" for name, value in variables.items())
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def _fish(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
