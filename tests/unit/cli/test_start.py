"""The command hands over to the official one: what it does not need it does not load."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"aiohttp", "cryptography", "grpclib", "modal", "sqlalchemy", "structlog"}


def test_the_command_line_loads_no_server() -> None:
    program = (
        "import sys, homeport.cli.main; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", program]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert "click" in loaded
    assert not HEAVY & set(loaded)
