"""An app to deploy; ``EDITION`` tells deployments apart."""

import os
import time

import modal

EDITION = os.environ.get("EDITION", "one")
app = modal.App("conformance-deployed")
edition = modal.Secret.from_dict({"EDITION_DEPLOYED": EDITION})


@app.function(secrets=[edition])
def double(x):
    print(f"doubling {x} in edition", os.environ["EDITION_DEPLOYED"])
    return 2 * x


@app.function(secrets=[edition])
def which():
    return os.environ["EDITION_DEPLOYED"]


@app.function(secrets=[edition])
def slow(seconds):
    time.sleep(seconds)
    return os.environ["EDITION_DEPLOYED"]


@app.function()
def task():
    return os.environ["MODAL_TASK_ID"]


@app.function()
def count(n):
    yield from range(n)


@app.cls()
class Greeter:
    greeting: str = modal.parameter(default="Hello")

    @modal.method()
    def greet(self, name):
        return f"{self.greeting}, {name}"

    @modal.method()
    def variable(self):
        return os.environ.get("OPTION_GIVEN")
