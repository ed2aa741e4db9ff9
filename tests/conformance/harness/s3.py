"""A local server that speaks S3, for what talks to object stores."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

from uv import find_uv_bin

from .clients import PYTHON, cache

MOTO = "moto[server]==5.2.5"
START_S = 60.0
SIGNED = (
    "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)
"""Credentials that it takes."""


class ObjectStore:
    """``moto_server`` on a free port, from a virtual environment of its own; forgets all at the end.

    It takes any credentials.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "moto.log"
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"

    def __enter__(self) -> Self:
        program = _install() / "bin" / "moto_server"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(program), "-H", "127.0.0.1", "-p", self.url.rpartition(":")[2]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                self._request("GET", "/")
            except OSError:
                assert time.monotonic() < deadline, self._log.read_text()
                time.sleep(0.1)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)

    def create(self, bucket: str) -> None:
        self._request("PUT", f"/{bucket}")

    def put(self, bucket: str, key: str, data: bytes) -> None:
        self._request("PUT", f"/{bucket}/{key}", data)

    def get(self, bucket: str, key: str) -> bytes | None:
        """The object; ``None`` if there is none."""
        try:
            return self._request("GET", f"/{bucket}/{key}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def _request(self, method: str, path: str, data: bytes | None = None) -> bytes:
        # what others wrote is private, and a body without a type is taken for a form
        headers = {"Authorization": SIGNED, "Content-Type": "application/octet-stream"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read()


def _install() -> Path:
    """The environment with it, made once per machine."""
    root = cache()
    root.mkdir(parents=True, exist_ok=True)
    folder = root / "moto"
    done = folder / ".homeport-ready"
    with (root / "moto.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != MOTO:
            uv = [os.fspath(find_uv_bin()), "--quiet"]
            subprocess.run([*uv, "venv", "--clear", "--python", PYTHON, str(folder)], check=True)
            python = str(folder / "bin" / "python")
            subprocess.run([*uv, "pip", "install", "--python", python, MOTO], check=True)
            done.write_text(MOTO)
    return folder
