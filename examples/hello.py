"""A function in a container: `homeport run examples/hello.py`, or `modal run examples/hello.py`."""

import platform

import modal

app = modal.App("hello")


@app.function()
def square(x: int) -> int:
    print(f"computing {x}² in a container, Python {platform.python_version()}")
    return x * x


@app.local_entrypoint()
def main(x: int = 42):
    print("one call:", square.remote(x))
    print("a hundred calls, in parallel:", sum(square.map(range(100))))
