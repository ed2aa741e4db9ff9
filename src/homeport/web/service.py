"""The addresses of web functions: which name a function gets, and whom a name leads to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from homeport.apps.model import App, AppState
from homeport.apps.service import AppService
from homeport.environments.service import EnvironmentService
from homeport.functions.model import FunctionRecord, WebPoint
from homeport.functions.service import FunctionService
from homeport.web.naming import DEV, slug, subdomain

_BEING_TRIED: Final = frozenset({AppState.EPHEMERAL, AppState.DETACHED})


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a request is for."""

    app: App
    record: FunctionRecord
    point: WebPoint

    @property
    def name(self) -> str:
        """The function as its user knows it."""
        name = self.record.tag.removesuffix(".*")
        return f"{name}.{self.point.method}" if self.point.method else name

    @property
    def is_direct(self) -> bool:
        """Whether connections go straight to a port of its containers."""
        return self.record.spec is not None and self.record.spec.is_direct

    @property
    def is_spliced(self) -> bool:
        """Whether bytes of HTTP/1.1 are passed on as they are: the container's server speaks it."""
        return self.is_direct and not self.point.is_h2

    @property
    def is_dev(self) -> bool:
        """Whether who asks is likely who wrote it."""
        return self.app.state in _BEING_TRIED


class WebRoutes:
    """Names of web functions under ``domain``. ``start`` before use.

    A name belongs to the function that claimed it last among the live ones: deploying under a
    label that another app has takes it over.
    """

    def __init__(
        self,
        functions: FunctionService,
        apps: AppService,
        environments: EnvironmentService,
        *,
        workspace: str,
        domain: str,
        port: Callable[[], int],
        scheme: str = "http",
    ) -> None:
        self._functions = functions
        self._apps = apps
        self._environments = environments
        self._workspace = workspace
        self._domain = domain.lower().strip(".")
        self._port = port
        self._scheme = scheme
        self._claims: dict[str, dict[str, None]] = {}
        """Function ids by host name, in the order of their claims."""
        functions.on_change(self._claim)

    def start(self, records: Iterable[FunctionRecord]) -> None:
        """Take up the functions of earlier runs."""
        for record in sorted(records, key=lambda record: record.created_at):
            self._claim(record)

    # ── naming ──────────────────────────────────────────────────────────────────────────────

    def name(self, app: App, function: str, label: str, dev_suffix: str) -> str:
        """The subdomain of ``function`` (``Class.method`` for methods) of ``app``.

        ``label`` and ``dev_suffix`` are the user's choices, empty for none. Raises
        ``InvalidError`` if they fit no host name.
        """
        dev = (slug(dev_suffix) or DEV) if app.state in _BEING_TRIED else ""
        return subdomain(
            self._workspace,
            self._environments.resolve(app.environment).web_suffix,
            app=app.name or app.description,
            function=function,
            label=label,
            dev_suffix=dev,
        )

    def url(self, host: str) -> str:
        """The address of a subdomain, or of a host name of the user's own."""
        name = host if "." in host else f"{host}.{self._domain}"
        port = self._port()
        is_usual = port == (443 if self._scheme == "https" else 80)
        return f"{self._scheme}://{name}" if is_usual else f"{self._scheme}://{name}:{port}"

    def is_taken(self, host: str, app_id: str) -> bool:
        """Whether a live app other than ``app_id`` has that subdomain now."""
        target = self.find(f"{host}.{self._domain}")
        return target is not None and target.app.app_id != app_id

    def names_of(self, app: App) -> list[str]:
        """All host names that lead to functions of the app's present version."""
        records = map(self._functions.find, app.layout.function_ids.values())
        specs = [
            record.spec for record in records if record is not None and record.spec is not None
        ]
        return [host for spec in specs for point in spec.web for host in self._hosts(point)]

    # ── resolving ───────────────────────────────────────────────────────────────────────────

    def is_ours(self, host: str) -> bool:
        """Whether a host name is one that web functions have, whether or not one has it now."""
        name = _bare(host)
        return name in self._claims or (name.endswith(f".{self._domain}") and "--" in name)

    def unknown(self, host: str) -> str:
        """What to say of a name that leads nowhere."""
        return (
            f"There is no web function at {host}. Its app was not deployed, has stopped, or has it "
            "under another name; `homeport app list` shows what runs."
        )

    def find(self, host: str) -> Target | None:
        """Whom the host name (with or without a port) leads to."""
        name = _bare(host)
        for function_id in reversed(self._claims.get(name, {})):
            target = self._target(function_id, name)
            if target is not None:
                return target
        return None

    def _target(self, function_id: str, name: str) -> Target | None:
        record = self._functions.find(function_id)
        app = self._apps.find(record.app_id) if record is not None else None
        if record is None or app is None or not app.is_live:
            return None
        published = app.layout.function_ids
        if published:
            current = self._functions.find(published.get(record.tag, ""))
            if current is None:  # the app's present version has no such function
                return None
            record = current
        if record.spec is None:
            return None
        for point in record.spec.web:
            if name in self._hosts(point):
                return Target(app, record, point)
        return None

    def _hosts(self, point: WebPoint) -> list[str]:
        return [f"{point.subdomain}.{self._domain}", *(domain.lower() for domain in point.domains)]

    def _claim(self, record: FunctionRecord) -> None:
        if record.spec is None or record.spec.base_function_id:
            return
        for point in record.spec.web:
            for host in self._hosts(point):
                claims = self._claims.setdefault(host, {})
                claims.pop(record.function_id, None)
                claims[record.function_id] = None
                self._prune(host)

    def _prune(self, host: str) -> None:
        """Forget claims of functions that are gone."""
        claims = self._claims[host]
        for function_id in [fid for fid in claims if self._functions.find(fid) is None]:
            del claims[function_id]


def _bare(host: str) -> str:
    """A host name without its port."""
    return host.partition(":")[0].lower().rstrip(".")
