"""Prints the edition of a deployed app once it is the expected one (or two minutes have passed)."""

import sys
import time

import modal


def main(name, expected, version="0", what=""):
    options = {"version": int(version)} if version != "0" else {}
    which = modal.Function.from_name(name, "which", **options)
    deadline = time.monotonic() + 120
    while (found := which.remote()) != expected and time.monotonic() < deadline:
        time.sleep(0.2)
    if what == "task":
        found = modal.Function.from_name(name, "task").remote()
    print(found)


if __name__ == "__main__":
    main(*sys.argv[1:])
