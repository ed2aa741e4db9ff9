"""``homeport doctor``: the node's checks of this machine, for people and as JSON.

The checks run as a program of their own: they load the node, which no other command needs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import click
import msgspec

from homeport.kernel.errors import InternalError
from homeport.settings import Settings

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red")}


class Check(msgspec.Struct, frozen=True):
    """One thing looked at, as ``homeport.node.probe`` says it."""

    name: str
    state: str
    found: str
    fix: str = ""


def examine(settings: Settings) -> list[Check]:
    """What the node's probe found, and that of stores elsewhere. Raises ``InternalError``."""
    checks = _run(
        "homeport.node.probe",
        str(settings.home),
        settings.default_runtime,
        settings.sandbox_runtime,
    )
    if settings.blob_store or settings.database_url:
        checks += _run("homeport.storage.probe", str(settings.home))
    return checks


def _run(module: str, *arguments: str) -> list[Check]:
    done = subprocess.run([sys.executable, "-P", "-m", module, *arguments], stdout=subprocess.PIPE)
    if done.returncode != 0:
        raise InternalError(f"the checks ended with exit code {done.returncode}; see above")
    return msgspec.json.decode(done.stdout, type=list[Check])


def can_run(checks: Sequence[Check]) -> bool:
    """Whether function containers can run here."""
    return all(check.state != "failed" for check in checks)


def render(checks: Sequence[Check]) -> str:
    """A line a check, with the fix below; the verdict last."""
    width = max(len(check.name) for check in checks)
    lines: list[str] = []
    for check in checks:
        mark, colour = _MARKS[check.state]
        lines.append(f"{click.style(mark, colour)} {check.name:<{width}}  {check.found}")
        if check.fix:
            lines.append(f"  {'':<{width}}  → {check.fix}")
    verdict = "can" if can_run(checks) else "cannot"
    return "\n".join([*lines, "", f"Function containers {verdict} run on this machine."])
