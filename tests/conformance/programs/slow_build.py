"""An image whose build takes a minute."""

import modal

image = modal.Image.debian_slim(python_version="3.11").run_commands(
    "echo the build goes on", "sleep 60"
)
app = modal.App("conformance-slow-build")


@app.function(image=image)
def never():
    return "unreachable"
