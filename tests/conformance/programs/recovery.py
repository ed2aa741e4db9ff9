"""Work that goes on while server or node are killed under it."""

import time

import modal

app = modal.App("conformance-recovery")


@app.function(max_containers=3)
def work(x):
    time.sleep(0.3)
    return x


@app.function(max_containers=2)
def later(x):
    time.sleep(2)
    return 10 * x


@app.local_entrypoint()
def main():
    from reporting import Report

    check = Report().check
    calls = [later.spawn(n) for n in range(6)]

    def mapped():
        found = []
        for value in work.map(range(150), order_outputs=False):
            found.append(value)
            if len(found) == 20:
                print("well on its way", flush=True)
        return sorted(found)

    check("map", mapped, timeout=240)
    check("spawned", lambda: [call.get(timeout=60) for call in calls], timeout=240)
    check("afterwards", lambda: work.remote(7))
