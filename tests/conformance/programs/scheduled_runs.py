"""Prints the runs of a scheduled app when there are as many as are waited for."""

import json
import sys
import time

import modal


def main(name, count):
    queue = modal.Queue.from_name(name, create_if_missing=True)
    deadline = time.monotonic() + 60
    while queue.len() < count and time.monotonic() < deadline:
        time.sleep(0.1)
    print(json.dumps(list(queue.iterate())))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
