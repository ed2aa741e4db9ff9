"""Running programs of the suite with a client against a server, and reading what they reported."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .bare import BareServer
from .clients import Client
from .server import Server

PROGRAMS = Path(__file__).parents[1] / "programs"
TIMEOUT_S = 600.0
_KEPT = ("PATH", "LANG", "TZ", "HOMEPORT_SANDBOX_RUNTIME")
"""Variables that clients have too; the last one says which differences to expect."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that ended."""

    command: str
    returncode: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    def succeeded(self) -> Completed:
        """Itself; fails with its output if the exit code is not 0."""
        assert self.returncode == 0, f"{self.command} ended with {self.returncode}:\n{self.output}"
        return self


@dataclass(slots=True)
class Checks:
    """What the checks of one program gave under one client."""

    completed: Completed
    lines: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    def value(self, name: str) -> Any:
        """What the check returned; fails if it raised, hung or never ran."""
        line = self._line(name)
        if "error" in line:
            raise AssertionError(f"check {name!r} raised:\n{line['error']['traceback']}")
        return line.get("value")

    def note(self, name: str, value: Any) -> None:
        """Add what was seen from outside."""
        self.lines[name] = {"value": value, "seconds": 0.0}

    def error(self, name: str) -> dict[str, Any]:
        """The exception (see ``reporting.describe``); fails if there was none."""
        line = self._line(name)
        assert "error" in line, f"check {name!r} raised nothing and gave {line.get('value')!r}"
        return line["error"]

    def _line(self, name: str) -> dict[str, Any]:
        line = self.lines.get(name, {})
        if "hung" in line:
            raise AssertionError(f"check {name!r} gave nothing within {line['hung']} s")
        if "seconds" not in line:
            begun = [key for key, found in self.lines.items() if "seconds" not in found]
            raise AssertionError(
                f"check {name!r} never ended (begun: {begun}); the program gave "
                f"{self.completed.returncode}:\n{self.completed.output[-6000:]}"
            )
        return line


def _hear_interrupts() -> None:
    """As in a terminal: what is run in the background of a script would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Started:
    """A client process in the background; what it prints goes to ``log``."""

    def __init__(
        self, command: list[str], environ: dict[str, str], log: Path, report: Path
    ) -> None:
        self._command = command
        self._log = log
        self._report = report
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environ,
                cwd=log.parent,
                start_new_session=True,
                preexec_fn=_hear_interrupts,
            )

    def wait_for(self, condition: Callable[[str], bool], timeout_s: float = 180.0) -> None:
        """Until ``condition(output so far)``; ends the process and fails if that never comes."""
        deadline = time.monotonic() + timeout_s
        while not condition(self.output()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._kill()
                raise AssertionError(f"never got that far:\n{self.output()}")
            time.sleep(0.1)

    def interrupt(self, presses: int = 1) -> Completed:
        """Ctrl-C; it must end within a minute.

        The client forgets a Ctrl-C that comes just as a step of its own is done (it cancels the
        step only). Where a test cannot choose the moment it allows more ``presses``, ten seconds
        apart, as a person would.
        """
        for _ in range(presses - 1):
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
                break
        else:
            self._process.send_signal(signal.SIGINT)
        return self.ended(60)

    def checks(self) -> Checks:
        """What it reported, when it has ended by itself."""
        return _read(self._report, self.ended(TIMEOUT_S))

    def lines(self) -> list[dict[str, Any]]:
        """What it has reported so far."""
        text = self._report.read_text() if self._report.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def ended(self, timeout_s: float = 60.0) -> Completed:
        """Itself, ended; fails if it does not end within ``timeout_s``."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._kill()
            raise AssertionError(f"did not end:\n{self.output()}") from None
        return Completed(" ".join(self._command), code, self.output(), "")

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")


class Runner:
    """Runs clients in a folder of their own, with nothing of the user's configuration."""

    def __init__(self, server: Server | BareServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self._results: dict[tuple[str, str], Checks] = {}

    def checks(
        self,
        client: Client,
        program: str,
        *arguments: str,
        script: bool = False,
        environ: dict[str, str] | None = None,
    ) -> Checks:
        """The checks of a program, run once per client and session."""
        key = (client.version, program)
        if key not in self._results:
            more = environ or {}
            self._results[key] = self._run_checks(client, program, arguments, script, more)
        return self._results[key]

    def _run_checks(
        self,
        client: Client,
        program: str,
        arguments: Sequence[str],
        script: bool,
        more: dict[str, str],
    ) -> Checks:
        report = self.folder / f"{program}-{client.version}.jsonl"
        report.unlink(missing_ok=True)
        environ = {"CONFORMANCE_REPORT": str(report), **more}
        run = self.script if script else self.modal_run
        completed = run(client, f"{program}.py", *arguments, environ=environ)
        return _read(report, completed)

    def modal_run(
        self,
        client: Client,
        target: str,
        *arguments: str,
        options: Sequence[str] = (),
        environ: dict[str, str] | None = None,
    ) -> Completed:
        """``modal run <options> program.py::entry <arguments>``."""
        return self.cli(client, "run", *options, _path(target), *arguments, environ=environ)

    def script(
        self, client: Client, program: str, *arguments: str, environ: dict[str, str] | None = None
    ) -> Completed:
        """``python program.py <arguments>``."""
        return self._run([str(client.python), _path(program), *arguments], environ)

    def python(
        self, client: Client, *arguments: str, environ: dict[str, str] | None = None
    ) -> Completed:
        """``python <arguments>``."""
        return self._run([str(client.python), *arguments], environ)

    def cli(
        self, client: Client, *arguments: str, environ: dict[str, str] | None = None
    ) -> Completed:
        """``modal <arguments>``."""
        return self.module(client, "modal", *arguments, environ=environ)

    def module(
        self, client: Client, name: str, *arguments: str, environ: dict[str, str] | None = None
    ) -> Completed:
        """``python -m <name> <arguments>``."""
        return self._run([str(client.python), "-m", name, *arguments], environ)

    def rows(self, client: Client, *arguments: str) -> list[dict[str, str]]:
        """A listing of the CLI as rows, column names as in the oldest client in snake case."""
        done = self.cli(client, *arguments, "--json").succeeded()
        rows = json.loads(done.stdout)
        return [{k.lower().replace(" ", "_"): v for k, v in row.items()} for row in rows]

    def start(
        self,
        client: Client,
        target: str,
        *arguments: str,
        options: Sequence[str] = (),
        environ: dict[str, str] | None = None,
    ) -> Started:
        """``modal run`` in the background."""
        words = ["run", *options, _path(target), *arguments]
        return self._start([str(client.python), "-m", "modal", *words], environ)

    def start_cli(self, client: Client, *arguments: str) -> Started:
        """``modal <arguments>`` in the background."""
        return self._start([str(client.python), "-m", "modal", *arguments])

    def start_script(self, client: Client, program: str, *arguments: str) -> Started:
        """``python program.py <arguments>`` in the background."""
        return self._start([str(client.python), _path(program), *arguments])

    def _start(self, command: list[str], more: dict[str, str] | None = None) -> Started:
        report = self.folder / "started.jsonl"
        report.unlink(missing_ok=True)
        environ = self._environment({"CONFORMANCE_REPORT": str(report), **(more or {})})
        return Started(command, environ, self.folder / "started.log", report)

    @contextlib.contextmanager
    def answering(
        self, client: Client, program: str
    ) -> Iterator[Callable[[Sequence[str]], Completed]]:
        """``python program.py``, which answers a line for each line that it is sent."""
        with subprocess.Popen(
            [str(client.python), _path(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment({}),
            cwd=self.folder,
        ) as process:
            asking, answers = process.stdin, process.stdout
            assert asking is not None
            assert answers is not None

            def ask(arguments: Sequence[str]) -> Completed:
                asking.write(json.dumps(arguments) + "\n")
                asking.flush()
                return Completed(" ".join(arguments), **json.loads(answers.readline()))

            try:
                yield ask
            finally:
                asking.close()

    def interrupted(
        self,
        client: Client,
        target: str,
        *arguments: str,
        when: Callable[[str], bool],
        options: Sequence[str] = (),
        presses: int = 1,
    ) -> Completed:
        """``modal run``, Ctrl-C as soon as ``when(output so far)``; it must end within 60 s."""
        started = self.start(client, target, *arguments, options=options)
        started.wait_for(when)
        return started.interrupt(presses)

    def _run(self, command: list[str], environ: dict[str, str] | None) -> Completed:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env=self._environment(environ or {}),
                cwd=self.folder,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as late:
            texts = [(part or b"").decode(errors="replace") for part in (late.stdout, late.stderr)]
            return Completed(" ".join(command), -1, texts[0], f"{texts[1]}\n(killed: too slow)")
        return Completed(" ".join(command), done.returncode, done.stdout, done.stderr)

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        own = {"HOME": str(self.folder), "MODAL_CONFIG_PATH": str(self.folder / "modal.toml")}
        plain = {"COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1", "TERM": "dumb"}
        return {**kept, **own, **plain, **self.server.environment(), **more}


def _path(target: str) -> str:
    name, mark, entry = target.partition("::")
    return f"{PROGRAMS / name}{mark}{entry}"


def _read(report: Path, completed: Completed) -> Checks:
    checks = Checks(completed)
    for text in report.read_text().splitlines() if report.exists() else ():
        line = json.loads(text)
        checks.lines[line["check"]] = line
    return checks
