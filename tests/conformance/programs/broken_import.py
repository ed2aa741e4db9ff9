"""A program whose module cannot be imported in the container."""

import modal

app = modal.App("conformance-broken-import")

if not modal.is_local():
    raise RuntimeError("this module refuses to be imported in a container")


@app.function()
def never():
    return "unreachable"


@app.function()
def neither():
    return "unreachable"


@app.local_entrypoint()
def main():
    from reporting import Report

    check = Report().check
    check("call", never.remote, timeout=120)
    check("map", lambda: list(neither.map(range(3))), timeout=120)
