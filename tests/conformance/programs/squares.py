"""A deployed function that programs in other languages call."""

import modal

app = modal.App("conformance-javascript-functions")


@app.function()
def square(x):
    return x * x
