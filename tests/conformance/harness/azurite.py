"""A local server that speaks Azure's blob storage: Azurite, from npm."""

from __future__ import annotations

import base64
import datetime
import fcntl
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final, Self

from .clients import cache

AZURITE: Final = "azurite@3.35.0"
START_S: Final = 60.0
ACCOUNT: Final = "devstoreaccount1"
KEY: Final = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""The account that every Azurite has."""
_VERSION: Final = "2021-08-06"
NEEDS: Final = all(shutil.which(program) for program in ("node", "npm"))


class Azurite:
    """Azurite's blob service on a free port; its data in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/{ACCOUNT}"

    def __enter__(self) -> Self:
        program = _install() / "node_modules" / ".bin" / "azurite-blob"
        log = self._folder / "azurite.log"
        place = ["--blobHost", "127.0.0.1", "--blobPort", str(self._port)]
        place += ["--location", str(self._folder / "data"), "--skipApiVersionCheck"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [str(program), *place, "--disableTelemetry"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        deadline = time.monotonic() + START_S
        while b"successfully listens" not in log.read_bytes():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(30)

    def create(self, container: str) -> None:
        """Make a container, which is what a bucket is called there."""
        date = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        kind = "application/octet-stream"
        lines = ["PUT", "", "", "", "", kind, "", "", "", "", "", ""]
        lines += [f"x-ms-date:{date}", f"x-ms-version:{_VERSION}"]
        lines += [f"/{ACCOUNT}/{ACCOUNT}/{container}", "restype:container"]
        mark = hmac.digest(base64.b64decode(KEY), "\n".join(lines).encode(), hashlib.sha256)
        headers = {
            "x-ms-date": date,
            "x-ms-version": _VERSION,
            "Content-Type": kind,
            "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(mark).decode()}",
        }
        url = f"{self.url}/{container}?restype=container"
        try:
            urllib.request.urlopen(urllib.request.Request(url, b"", headers, method="PUT")).read()
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode(errors="replace")) from None


def _install() -> Path:
    """The folder with it, made once per machine."""
    root = cache()
    root.mkdir(parents=True, exist_ok=True)
    folder = root / "azurite"
    done = folder / ".homeport-ready"
    with (root / "azurite.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists() or done.read_text() != AZURITE:
            npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix"]
            subprocess.run([*npm, os.fspath(folder), AZURITE], check=True)
            done.write_text(AZURITE)
    return folder
