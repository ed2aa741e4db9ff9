"""The first program of every reader: one function, one local entry point."""

import sys

import modal

app = modal.App("conformance-hello")


@app.function()
def square(x: int):
    print("This line comes from a container")
    print("and this one from its stderr", file=sys.stderr)
    return x**2


@app.function()
def text():
    return "written by a function"


@app.local_entrypoint()
def main():
    print("the square is", square.remote(42))


if __name__ == "__main__":
    with app.run():
        print("the square is", square.remote(42))
