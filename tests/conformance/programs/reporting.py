"""Runs named checks inside a conformance program and writes what each gave to a file.

Imported only on the local side (inside entry points), so containers never need it. One check is
one JSON line; a check that hangs is reported as such and the program goes on with the next.
"""

import asyncio
import inspect
import json
import os
import threading
import time
import traceback


class Report:
    """Appends JSON lines to the file named by ``CONFORMANCE_REPORT``."""

    def __init__(self):
        self._file = open(os.environ["CONFORMANCE_REPORT"], "a", buffering=1)  # noqa: SIM115

    def check(self, name, call, timeout=60.0):
        """Run ``call`` (plain or ``async``) for at most ``timeout`` seconds; record value or error."""
        self._write({"check": name, "started": True})
        outcome = {}
        began = time.monotonic()

        def work():
            try:
                if inspect.iscoroutinefunction(call):
                    outcome["value"] = asyncio.run(call())
                else:
                    outcome["value"] = call()
            except BaseException as error:
                outcome["error"] = describe(error)

        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            outcome = {"hung": timeout}
        outcome["seconds"] = round(time.monotonic() - began, 3)
        self._write({"check": name, **outcome})
        return outcome.get("value")

    def note(self, name, value):
        """Record a value that needed no call."""
        self._write({"check": name, "value": value, "seconds": 0.0})

    def _write(self, line):
        self._file.write(json.dumps(line, default=repr) + "\n")


def describe(error):
    """What a test may want to know about an exception, as plain data."""
    return {
        "type": type(error).__name__,
        "bases": [base.__name__ for base in type(error).__mro__],
        "message": str(error),
        "traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        "line_cache": sorted(set(getattr(error, "__line_cache__", {}).values())),
        "cause": describe(error.__cause__) if error.__cause__ is not None else None,
    }


def raised(call):
    """The kind of error that ``call`` gives, and its text."""
    try:
        return ["nothing", repr(call())]
    except Exception as error:
        return [type(error).__name__, str(error)]


def until(condition, timeout=30.0, pause=0.25):
    """The first true value of ``condition()``; the last value when ``timeout`` seconds pass."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(pause)
