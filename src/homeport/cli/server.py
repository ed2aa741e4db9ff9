"""Questions of the owner of this machine to its server."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import click

from homeport.cli import up
from homeport.kernel.errors import HomeportError, InvalidError, NotFoundError, UnavailableError
from homeport.settings import Settings
from homeport.workspace import credentials

_TIMEOUT_S = 600.0
_ERRORS: dict[int, type[HomeportError]] = {404: NotFoundError, 503: UnavailableError}


class Server:
    """The running server of a home, as the owner of the machine asks it."""

    def __init__(self, settings: Settings) -> None:
        self._url = urlsplit(up.ensure_running(settings, lambda line: click.echo(line, err=True)))
        found = credentials.read(settings.home)
        self._token = found.node_token if found is not None else ""

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """The answer's body. Raises ``HomeportError`` with what the server says."""
        connection = http.client.HTTPConnection(
            self._url.hostname or "127.0.0.1", self._url.port or 80, timeout=_TIMEOUT_S
        )
        try:
            headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json"}
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"the server does not answer: {error}") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise _ERRORS.get(answer.status, InvalidError)(_message(data))
        return data


def _message(data: bytes) -> str:
    try:
        document: Any = json.loads(data)
        return str(document["error"])
    except (ValueError, KeyError, TypeError):
        return data.decode(errors="replace").strip()[:500]
