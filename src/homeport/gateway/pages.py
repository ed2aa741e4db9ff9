"""The page of an app: its state, functions, containers and last lines."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from aiohttp import web

from homeport.kernel.errors import NotFoundError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FunctionLine:
    """A function as the page shows it. ``web_url`` is empty unless it answers HTTP."""

    name: str
    pending: int = 0
    running: int = 0
    containers: int = 0
    web_url: str = ""


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A container; ``started_at`` in Unix seconds, 0 = not yet."""

    task_id: str
    function: str
    state: str
    started_at: float = 0.0


@dataclass(frozen=True, slots=True)
class LogLine:
    """A piece of output; ``source`` is ``stdout``, ``stderr`` or ``system``, time Unix seconds."""

    time: float
    source: str
    text: str


@dataclass(frozen=True, slots=True)
class AppPage:
    """All that the page shows. ``is_live`` makes it reload itself."""

    app_id: str
    name: str
    state: str
    environment: str
    created_at: float
    is_live: bool
    functions: Sequence[FunctionLine] = ()
    tasks: Sequence[TaskLine] = ()
    logs: Sequence[LogLine] = ()


class AppPages(Protocol):
    """Gathers what the page shows."""

    async def page(self, app_id: str, *, log_lines: int) -> AppPage | None:
        """The app with its newest ``log_lines`` entries, or ``None`` if there is no such app."""
        ...


LOG_LINES: Final = 200
LOG_LINES_MAX: Final = 5_000


class PageRoutes:
    """``GET /apps/<app_id>`` and, as plain text, ``GET /apps/<app_id>/logs``.

    Whoever knows an app's id may see it: ids cannot be guessed and are shown to their users only.
    """

    def __init__(self, pages: AppPages) -> None:
        self._pages = pages

    def add_to(self, router: web.UrlDispatcher) -> None:
        router.add_get("/apps/{id}", self._page)
        router.add_get("/apps/{id}/logs", self._logs)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        page = await self._find(request, LOG_LINES)
        return web.Response(text=render(page), content_type="text/html", headers=_HEADERS)

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        page = await self._find(request, LOG_LINES_MAX)
        text = "".join(line.text for line in page.logs)
        return web.Response(text=text, content_type="text/plain", headers=_HEADERS)

    async def _find(self, request: web.Request, log_lines: int) -> AppPage:
        app_id = request.match_info["id"]
        page = await self._pages.page(app_id, log_lines=log_lines)
        if page is None:
            raise NotFoundError(f"There is no app {app_id}.")
        return page


def render(page: AppPage) -> str:
    """The page as HTML. Everything that comes from users is escaped."""
    return _DOCUMENT.format(
        reload='<meta http-equiv="refresh" content="5">' if page.is_live else "",
        name=html.escape(page.name or page.app_id),
        state=html.escape(page.state),
        app_id=html.escape(page.app_id),
        environment=html.escape(page.environment),
        created=_when(page.created_at),
        functions=_table(
            ("Function", "Pending", "Running", "Containers"), page.functions, _function_cells
        ),
        tasks=_table(("Container", "Function", "State", "Since"), page.tasks, _task_cells),
        logs="".join(map(_log_line, page.logs)) or "Nothing has been printed yet.",
    )


def _function_cells(line: FunctionLine) -> tuple[str, ...]:
    name = html.escape(line.name)
    if line.web_url.startswith(("http://", "https://")):
        name = f'<a href="{html.escape(line.web_url)}">{name}</a>'
    return name, str(line.pending), str(line.running), str(line.containers)


def _task_cells(line: TaskLine) -> tuple[str, ...]:
    return (
        html.escape(line.task_id),
        html.escape(line.function),
        html.escape(line.state),
        _when(line.started_at),
    )


def _log_line(line: LogLine) -> str:
    return f'<span class="{html.escape(line.source)}">{html.escape(line.text)}</span>'


def _table(heads: Sequence[str], lines: Sequence[T], cells: Callable[[T], tuple[str, ...]]) -> str:
    if not lines:
        return f"<p>No {heads[0].lower()}s.</p>"
    head = "".join(f"<th>{text}</th>" for text in heads)
    rows = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells(line)) + "</tr>" for line in lines
    )
    return f"<table><tr>{head}</tr>{rows}</table>"


def _when(timestamp: float) -> str:
    if not timestamp:
        return "–"
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(timestamp))


_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

_DOCUMENT: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">{reload}
<title>{name} · Homeport</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.4rem; margin-bottom: 0; }} h2 {{ font-size: 1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8884; }}
pre {{ padding: 1rem; border: 1px solid #8884; border-radius: 6px; overflow-x: auto; }}
.stderr {{ color: #c33; }} .system {{ opacity: .6; }} .meta {{ opacity: .7; }}
</style></head><body>
<h1>{name}</h1>
<p class="meta">{state} · {app_id} · environment {environment} · created {created}</p>
<h2>Functions</h2>{functions}
<h2>Containers</h2>{tasks}
<h2>Last output</h2><pre>{logs}</pre>
</body></html>
"""
