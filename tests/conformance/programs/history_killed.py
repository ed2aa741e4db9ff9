"""Calls the deployed app and kills the server as soon as it has each result."""

import os
import signal
import sys

import modal


def main(name, pid):
    double = modal.Function.from_name(name, "double")
    assert list(double.map(range(20))) == list(range(0, 40, 2))
    call = double.spawn(1)
    assert call.get(timeout=60) == 2
    os.kill(pid, signal.SIGKILL)
    print("CALL", call.object_id)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
