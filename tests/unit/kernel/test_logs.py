"""What the processes print when something breaks: a program of its own each, as they are."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

from homeport.kernel.errors import InvalidError
from homeport.settings import load

SECRET = "correct-horse-battery"
PROGRAM = """
import logging, sys
import structlog
from homeport.kernel.logs import configure_logging

log = structlog.get_logger("early")
configure_logging(*sys.argv[1:])

def breaks(value):
    token = "-".join(value)
    raise RuntimeError("it broke")

try:
    breaks(["correct", "horse", "battery"])
except RuntimeError:
    log.exception("not done", call="fc-1")
    logging.getLogger("some.library").exception("it failed for %s", "somebody")
log.debug("too much detail")
logging.getLogger("some.library").info("chatter")
"""


def printed(form: str, *, terminal: bool = False, level: str = "info") -> str:
    command = [sys.executable, "-c", PROGRAM, level, form]
    if not terminal:
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(command, stderr=theirs)
        os.close(theirs)
        output = b""
        try:
            while piece := screen.read(65536):
                output += piece
        except OSError:  # how a terminal says that nobody is there any more
            pass
        assert process.wait() == 0
    return output.decode()


@pytest.mark.parametrize("form", ["auto", "json"])
def test_programs_get_an_object_a_line(form: str) -> None:
    ours, library = (json.loads(line) for line in printed(form).splitlines())
    assert (ours["event"], ours["level"], ours["call"]) == ("not done", "error", "fc-1")
    assert "RuntimeError: it broke" in ours["exception"]
    assert library["event"] == "it failed for somebody"
    assert library["logger"] == "some.library"
    assert "RuntimeError: it broke" in library["exception"]


def test_people_get_text() -> None:
    output = printed("console")
    assert "not done" in output
    assert "Traceback (most recent call last):" in output
    assert "\x1b[" not in output


@pytest.mark.parametrize(
    ("form", "terminal"), [("console", True), ("auto", True), ("console", False), ("json", False)]
)
def test_local_variables_are_not_shown(form: str, terminal: bool) -> None:
    output = printed(form, terminal=terminal)
    assert output.count("RuntimeError: it broke") == 2
    assert SECRET not in output


def test_only_what_is_important_enough_is_shown() -> None:
    assert "detail" not in printed("json")
    assert "too much detail" in printed("json", level="debug")
    assert "chatter" not in printed("json", level="debug")


def test_values_that_do_not_fit_are_refused() -> None:
    for name in ("HOMEPORT_LOG_LEVEL", "HOMEPORT_LOG_FORMAT"):
        with pytest.raises(InvalidError, match="loud"):
            load(environ={name: "loud"})
