"""Local entry points and functions that take command-line arguments."""

import datetime

import modal

app = modal.App("conformance-entrypoints")


@app.function()
def repeat(word: str, times: int = 2):
    print("said:", " ".join([word] * times))
    return " ".join([word] * times)


@app.local_entrypoint()
def typed(name: str, count: int = 1, ratio: float = 0.5, flag: bool = False):
    print("typed:", [name, count, ratio, flag])


@app.local_entrypoint()
def dated(when: datetime.datetime):
    print("dated:", when.isoformat())


@app.local_entrypoint()
def free(*arguments):
    print("free:", list(arguments))


@app.local_entrypoint()
def calling(word: str):
    print("calling:", repeat.remote(word, times=3))


@app.local_entrypoint()
def failing():
    raise SystemExit(7)


@app.local_entrypoint()
def raising():
    raise ValueError("raised on this side")


@app.function()
def refuse(word):
    raise LookupError(f"no such word: {word}")


@app.local_entrypoint()
def raising_there():
    refuse.remote("hapax")


@app.cls()
class Speaker:
    name: str = modal.parameter(default="nobody")

    @modal.method()
    def speak(self, word: str):
        print(f"spoken: {self.name} says {word}")
