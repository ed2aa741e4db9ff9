"""Handing a command to the official client's own CLI, as this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from homeport.cli import client_env, instance, up
from homeport.kernel.errors import NotFoundError
from homeport.settings import Settings

COMMANDS: Mapping[str, str] = {
    "run": "Run a function or local entrypoint of a file.",
    "deploy": "Deploy an app.",
    "serve": "Serve an app's web functions, reloaded when its code changes.",
    "shell": "Open a shell in a container.",
    "app": "Deployed and running apps.",
    "function": "Functions.",
    "container": "Running containers: list, logs, exec, stop.",
    "image": "Images; of this machine: ls, rm, prune, caches, export, import.",
    "volume": "Files of volumes.",
    "dict": "Dicts and their contents.",
    "queue": "Queues and their contents.",
    "secret": "Secrets.",
    "environment": "Environments.",
    "workspace": "The workspace.",
    "server": "Servers.",
    "endpoint": "LLM inference endpoints.",
    "curl": "Send an authenticated request to a web function.",
    "token": "Tokens.",
    "profile": "Profiles of the client.",
    "config": "Configuration of the client.",
    "dashboard": "Open the dashboard in a browser.",
    "billing": "Usage of the workspace.",
    "changelog": "What changed in the client.",
    "skills": "The client's skills for coding agents.",
    "setup": "Set up the client.",
}
"""What the official CLI offers, for ``homeport --help``. Other names are handed to it as well."""

_NEEDS_NO_SERVER = {"config", "profile", "skills", "changelog"}


def hand_over(settings: Settings, command: str, arguments: Sequence[str]) -> None:
    """Become ``modal COMMAND ARGUMENTS`` against this home; does not return.

    Starts Homeport in the background first if nothing answers for the home. Raises
    ``HomeportError`` when that fails.
    """
    if _works_alone(command, arguments):
        url = client_env.server_url(settings)
        try:
            variables = client_env.client_variables(settings, url)
        except NotFoundError:
            variables = {"MODAL_SERVER_URL": url}
    else:
        url = up.ensure_running(settings, _say)
        variables = client_env.client_variables(settings, url)
    instance.open_home(settings)
    environment = client_env.client_environment(settings, variables)
    argv = [*client_command(os.environ), command, *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(argv[0], argv, environment)


def client_command(environ: Mapping[str, str]) -> list[str]:
    """How to start the official CLI: with the active virtualenv's client if it has one, else ours.

    The user's own packages, and the Python version that functions are pickled for, are there.
    ``-P`` keeps the working directory from shadowing modules (the client adds it itself, last);
    Python 3.10 does not know it.
    """
    root = environ.get("VIRTUAL_ENV")
    if root and os.path.realpath(root) != os.path.realpath(sys.prefix):
        python = str(Path(root) / "bin" / "python")
        for start in ([python, "-P"], [python]):
            if _has_client(start):
                return [*start, "-m", "modal"]
    return [sys.executable, "-P", "-m", "modal"]


def _has_client(start: list[str]) -> bool:
    test = "import importlib.util as u, sys; sys.exit(u.find_spec('modal') is None)"
    try:
        return subprocess.run([*start, "-c", test], capture_output=True).returncode == 0
    except OSError:
        return False


def _works_alone(command: str, arguments: Sequence[str]) -> bool:
    own = list(arguments)
    if "--" in own:
        own = own[: own.index("--")]
    return command in _NEEDS_NO_SERVER or "--help" in own or "-h" in own


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
