"""An app that a test file of its user runs."""

import modal

app = modal.App("conformance-pytest")


@app.function()
def double(x):
    return 2 * x
