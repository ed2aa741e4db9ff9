"""An image made by one app, used by another after the first is gone and its layers are lost."""

import os
import sys
from pathlib import Path

import modal

ID_FILE = Path.home() / "rebuilt-image-id"
BASE = modal.Image.from_registry("python:3.11-slim-bookworm")


def bake(name):
    print("baking", name)
    Path("/baked").write_text(name + os.environ["TOPPING"])


def made():
    secret = modal.Secret.from_dict({"TOPPING": " with salt"})
    return BASE.run_function(bake, args=("bread",), secrets=[secret]).run_commands(
        "echo $TOPPING > /told", secrets=[secret]
    )


app = modal.App("conformance-rebuilt")
if os.environ.get("REBUILT_PART") == "make" or not modal.is_local():
    image = made()
else:
    image = modal.Image.from_id(ID_FILE.read_text())


@app.function(image=image)
def look():
    return Path("/baked").read_text(), Path("/told").read_text().strip()


@app.local_entrypoint()
def main():
    sys.path.insert(0, str(Path(__file__).parent))
    from reporting import Report

    Report().check("look", look.remote, 200)
    ID_FILE.write_text(image.object_id)
