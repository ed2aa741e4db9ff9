"""Who may go to web servers in containers, and to which container: places, tokens, sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Final, Protocol

from homeport.calls.lease import Lease
from homeport.calls.service import CallService
from homeport.functions.model import FunctionRecord
from homeport.gateway.access import Access
from homeport.gateway.doorman import Headers, Refusal
from homeport.kernel import ids
from homeport.web.service import Target, WebRoutes

START_PATH: Final = b"/_modal/sessions/start"
TERMINATE_PATH: Final = b"/_modal/sessions/terminate"
IDLE_TIMEOUT_S: Final = 600.0
SESSION: Final = "ss"
TOKEN: Final = "sk"


class Places(Protocol):
    """What the scheduler knows of places."""

    def is_full(self, function_id: str) -> bool:
        """Whether no container has room, and none will without another one's giving way."""
        ...


class Served(Protocol):
    """Notes requests of servers."""

    def __call__(
        self, record: FunctionRecord, *, route: str, arrived_at: float, task_id: str, status: int
    ) -> None: ...


class Session:
    """A caller's hold on one container: its requests all go there while it lasts."""

    def __init__(
        self, lease: Lease, function_id: str, idle_s: float, on_idle: Callable[[Session], None]
    ) -> None:
        self.session_id = ids.new(SESSION)
        self.token = ids.new(TOKEN)
        self.lease = lease
        self.function_id = function_id
        self._idle_s = idle_s
        self._on_idle = on_idle
        self._requests = 0
        self._timer: asyncio.TimerHandle | None = None
        self._wait()

    def begin(self) -> None:
        """A request of the session begins."""
        self._requests += 1
        self.end_wait()

    def end(self) -> None:
        """A request of the session is answered."""
        self._requests -= 1
        if not self._requests:
            self._wait()

    def end_wait(self) -> None:
        """It is not idle, or over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._idle_s, self._on_idle, self)


class Direct:
    """The doorman of ``splice``."""

    def __init__(
        self,
        routes: WebRoutes,
        calls: CallService,
        places: Places,
        access: Access,
        *,
        app_page: Callable[[str], str],
        served: Served,
    ) -> None:
        self._served = served
        self._routes = routes
        self._calls = calls
        self._places = places
        self._access = access
        self._app_page = app_page
        self._sessions: dict[str, Session] = {}

    def admit(self, headers: Headers) -> Target | Refusal:
        host = _value(headers, b"host")
        target = self._routes.find(host)
        if target is None:
            return Refusal(404, self._routes.unknown(host))
        if not target.is_spliced:
            return Refusal(421, f"{host} is served on connections of its own; open another one")
        if target.point.needs_token and not self._may_enter(target, headers):
            return Refusal(401, self._access.SENTENCE)
        return target

    def _may_enter(self, target: Target, headers: Headers) -> bool:
        session = self._session(target, headers)
        return session is not None or self._access.is_known(
            target, {name.lower(): value for name, value in headers}
        )

    def open(self, target: Target, headers: Headers) -> Lease | Refusal:
        if target.point.is_sticky:
            session = self._session(target, headers)
            if session is None:
                return Refusal(
                    401,
                    "This server is used in sessions: start one, and send its token as "
                    "Modal-Authorization: Bearer <token>. A session that was idle has ended.",
                )
            return self._place_of(session)
        lease = self._calls.open_lease(
            function_id=target.record.function_id, app_id=target.app.app_id
        )
        if (
            target.point.is_server
            and lease.place is None
            and self._places.is_full(target.record.function_id)
        ):
            self.close(lease)
            return Refusal(429, self.explain(target, "all its containers are busy; try again"))
        return lease

    def close(self, lease: Lease) -> None:
        if isinstance(lease.owner, Session):
            lease.owner.end()
        else:
            self._calls.give_back(lease)

    def explain(self, target: Target, reason: str) -> str:
        app = target.app
        why = f": {reason}" if target.is_dev and reason else "."
        return (
            f"The web server {target.name!r} of the app {app.name or app.description!r} gave no "
            f"answer{why}\nIts log: `homeport app logs {app.app_id}`, or "
            f"{self._app_page(app.app_id)}"
        )

    def served(
        self, target: Target, path: bytes, task_id: str, arrived_at: float, status: int
    ) -> None:
        if target.point.is_server:
            self._served(
                target.record,
                route=path.decode("latin-1"),
                arrived_at=arrived_at,
                task_id=task_id,
                status=status,
            )

    # ── sessions ────────────────────────────────────────────────────────────────────────────

    def control(
        self,
        target: Target,
        path: bytes,
        headers: Headers,
        answer: Callable[[Refusal], None],
    ) -> bool:
        """Carry out a request that is about a session, if it is one; ``answer`` gets the outcome."""
        if not target.point.is_sticky or path not in (START_PATH, TERMINATE_PATH):
            return False
        if path == TERMINATE_PATH:
            token = _value(headers, b"x-modal-server-session-token")
            session = self._sessions.get(token)
            if session is None or session.function_id != target.record.function_id:
                answer(Refusal(404, "There is no such session: it has ended."))
            else:
                self._end(session)
                answer(Refusal(200, "", body=b"{}"))
            return True
        self._start(target, headers, answer)
        return True

    def _start(self, target: Target, headers: Headers, answer: Callable[[Refusal], None]) -> None:
        text = _value(headers, b"x-modal-server-session-idle-timeout")
        idle_s = float(text) if text.isdigit() and int(text) > 0 else IDLE_TIMEOUT_S
        lease = self._calls.open_lease(
            function_id=target.record.function_id, app_id=target.app.app_id
        )

        def changed() -> None:
            if lease.output is not None:
                answer(Refusal(503, self.explain(target, lease.output.result.exception)))
            elif lease.place is not None:
                session = Session(lease, target.record.function_id, idle_s, self._end)
                self._sessions[session.token] = session
                lease.on_change = lambda: self._end(session)
                body = {"session_id": session.session_id, "token": session.token}
                answer(Refusal(200, "", body=json.dumps(body).encode()))

        lease.on_change = changed
        changed()

    def _session(self, target: Target, headers: Headers) -> Session | None:
        if not target.point.is_sticky:
            return None
        kind, _, token = _value(headers, b"modal-authorization").partition(" ")
        session = self._sessions.get(token.strip()) if kind.lower() == "bearer" else None
        if session is None or session.function_id != target.record.function_id:
            return None
        return session

    def _place_of(self, session: Session) -> Lease:
        session.begin()
        lease = Lease()
        lease.place = session.lease.place
        lease.owner = session
        return lease

    def _end(self, session: Session) -> None:
        if self._sessions.pop(session.token, None) is not None:
            session.end_wait()
            self._calls.give_back(session.lease)


def _value(headers: Headers, name: bytes) -> str:
    """A header's value; empty if there is none."""
    for key, value in headers:
        if key.lower() == name:
            return value.decode("latin-1")
    return ""
