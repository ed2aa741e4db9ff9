"""A container that spends a minute importing its module."""

import time

import modal

app = modal.App("conformance-slow-start")

if not modal.is_local():
    print("importing slowly", flush=True)
    time.sleep(60)


@app.function()
def never():
    return "unreachable"
