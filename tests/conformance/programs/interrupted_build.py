"""An image whose build waits, the first time, until the test has killed what it runs on."""

import sys
from pathlib import Path

import modal

PART = Path.home() / "part"
part = PART.read_text() if modal.is_local() else ""
image = (
    modal.Image.from_registry("python:3.11-slim-bookworm")
    .run_commands(f"echo first > /first; : {part}")
    .dockerfile_commands(
        "RUN --mount=type=cache,target=/seen echo half > /half; "
        "if [ ! -e /seen/interrupted ]; then touch /seen/interrupted; echo it waits; sleep 300; fi; "
        "echo whole > /half"
    )
)
app = modal.App("conformance-interrupted-build")


@app.function(image=image)
def look():
    return Path("/first").read_text().strip(), Path("/half").read_text().strip()


@app.local_entrypoint()
def main():
    sys.path.insert(0, str(Path(__file__).parent))
    from reporting import Report

    Report().check("look", look.remote, 200)
