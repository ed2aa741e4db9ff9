"""An app to serve: the test edits a copy of it."""

import modal

app = modal.App("conformance-served")

if not modal.is_local():
    print("edition ONE in a container", flush=True)


@app.function(min_containers=1)
def edition():
    return "ONE"
