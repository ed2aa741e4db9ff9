"""Calls a deployed app without a pause until told to stop; says what went wrong."""

import json
import sys
import threading
import time
from pathlib import Path

import modal


def main(name, stop_file, callers):
    double = modal.Function.from_name(name, "double")
    which = modal.Function.from_name(name, "which")
    Greeter = modal.Cls.from_name(name, "Greeter")  # noqa: N806
    double.hydrate()
    function = modal.Function.from_name(name, "slow")
    slow = function.spawn(20)
    while function.get_current_stats().backlog:  # until a container has it
        time.sleep(0.1)
    counts, failures, editions = [0] * callers, [], []

    def call(index):
        while not Path(stop_file).exists():
            try:
                assert double.remote(index) == 2 * index
                if index == 0:
                    editions.append(which.remote())
                if index == 1:
                    assert Greeter(greeting="Moin").greet.remote("you") == "Moin, you"
            except Exception as error:
                failures.append(repr(error))
            counts[index] += 1

    threads = [threading.Thread(target=call, args=(index,)) for index in range(callers)]
    print("calling", flush=True)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = [edition for n, edition in enumerate(editions) if n == 0 or edition != editions[n - 1]]
    found = slow.get(timeout=60)
    print(json.dumps({"slow": found, "calls": sum(counts), "failures": failures, "editions": seen}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
