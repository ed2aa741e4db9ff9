"""Takes memory until the server refuses new work, sees that its own goes on, and gives it back."""

import time

import modal

app = modal.App("short-of-memory")
PIECE = 64 * 2**20
PATIENCE_S = 100


@app.function(max_containers=1)
def slow(x):
    time.sleep(0.3)
    return x


@app.function(max_containers=1)
def quick():
    return "taken"


def refusal():
    """Why new work is refused now; empty if it is taken."""
    try:
        quick.remote()
    except modal.exception.ResourceExhaustedError as error:
        return str(error)
    return ""


def retried(work):
    """Others of the machine take memory too, and give it back."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return work()
        except modal.exception.ResourceExhaustedError:
            assert time.monotonic() < deadline
            time.sleep(1)


def main():
    with modal.enable_output(), app.run():
        retried(quick.remote)
        running = retried(lambda: [slow.spawn(number) for number in range(40)])
        taken, told = [], ""
        while not told:
            taken.append(b"\1" * PIECE)
            told = refusal()
        print(told)
        assert [call.get() for call in running] == list(range(40))
        print("what ran went on")
        taken.clear()
        assert retried(quick.remote) == "taken"
        print("taken again")


if __name__ == "__main__":
    main()
