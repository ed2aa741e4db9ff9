"""A real browser (Debian's Chromium, without a window), told what to do by its DevTools protocol."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

PROGRAM = shutil.which("chromium") or ""
_ADDRESS = re.compile(rb"DevTools listening on (ws://\S+)")
_START_S = 120.0


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, session: str) -> None:
        self._socket = socket
        self._session = session
        self._numbers = itertools.count(1)

    async def command(self, method: str, **params: Any) -> Any:
        """What the browser answers to a command. Raises ``AssertionError`` with its complaint."""
        number = next(self._numbers)
        said = {"id": number, "method": method, "params": params}
        await self._socket.send_json(said | ({"sessionId": self._session} if self._session else {}))
        while True:
            answer = await self._socket.receive_json()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    async def open(self, url: str) -> None:
        """Go there, until the page is loaded."""
        gone = await self.command("Page.navigate", url=url)
        assert "errorText" not in gone, gone
        ready = "new Promise(r => document.readyState == 'complete' ? r(1) : addEventListener('load', r))"
        await self.run(ready + ".then(() => 1)")

    async def run(self, script: str) -> Any:
        """The value of an expression in the page, awaited if it is a promise."""
        done = await self.command(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")


@contextlib.asynccontextmanager
async def browser(*options: str) -> AsyncIterator[Page]:
    """A browser that was just started, with an empty page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"),
            *("--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"),
            *("--no-proxy-server", f"--user-data-dir={folder}", *options),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_START_S):
                address = await _address(process)
                async with (
                    aiohttp.ClientSession() as session,
                    session.ws_connect(address, max_msg_size=0) as socket,
                ):
                    root = Page(socket, "")
                    made = await root.command("Target.createTarget", url="about:blank")
                    target = made["targetId"]
                    attached = await root.command(
                        "Target.attachToTarget", targetId=target, flatten=True
                    )
                    page = Page(socket, attached["sessionId"])
                    await page.command("Page.enable")
                    yield page
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(20):
                    await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    seen = b""
    while not (found := _ADDRESS.search(seen)):
        part = await process.stderr.read(4096)
        assert part, seen.decode(errors="replace")
        seen += part
    return found[1].decode()
