"""The methods of Image whose builds take long, and names, logs and forced builds."""

import os
import sys
from pathlib import Path

import modal

HERE = Path(__file__).parent
PROJECT = HERE / "image_project"
VERSION = tuple(int(part) for part in modal.__version__.split("."))
OLD_BUILDERS = ["2023.12", "2024.04", "2024.10"]
NEW_BUILDERS = ["2025.06", "2026.10"]
VERSIONS = (
    "import importlib.metadata as m, sys\n"
    "def of(name):\n"
    "    try:\n"
    "        return m.version(name)\n"
    "    except m.PackageNotFoundError:\n"
    "        return None\n"
)


def probe(code):
    """Run ``code`` in the container; what it leaves in ``result``."""
    names = {}
    exec(code, names)
    return names["result"]


def inside(image, code):
    """What ``code`` finds in a container of ``image``."""
    app = modal.App("conformance-images-more")
    function = app.function(image=image)(probe)
    with app.run():
        return function.remote(code)


def built(image):
    """Build ``image``; its id."""
    app = modal.App("conformance-images-more")
    if not hasattr(image, "build"):
        app.function(image=image)(probe)
        with app.run():
            return image.object_id
    with app.run():
        return image.build(app).object_id


def base():
    return modal.Image.from_registry("python:3.11-slim-bookworm")


def slim():
    """debian_slim as it comes: compiler, apt, pip, uv."""
    image = modal.Image.debian_slim(python_version="3.11").apt_install("tree")
    return inside(
        image,
        VERSIONS + "import shutil\nresult = [sys.version_info[:2] == (3, 11), "
        "[bool(shutil.which(n)) for n in ('gcc', 'gfortran', 'make', 'tree', 'uv')]]",
    )


def builder(version):
    """The base image of an image builder version, and a package on it."""
    os.environ["MODAL_IMAGE_BUILDER_VERSION"] = version
    try:
        image = modal.Image.debian_slim(python_version="3.11").pip_install("six")
        return inside(
            image, VERSIONS + "result = [sys.version_info[:2] == (3, 11), bool(of('six'))]"
        )
    finally:
        del os.environ["MODAL_IMAGE_BUILDER_VERSION"]


def requirements():
    image = base().pip_install_from_requirements(str(PROJECT / "requirements.txt"))
    return inside(image, VERSIONS + "result = [of('six'), bool(of('idna'))]")


def pyproject():
    image = base().pip_install_from_pyproject(
        str(PROJECT / "pyproject.toml"), optional_dependencies=["extra"]
    )
    return inside(image, VERSIONS + "result = [bool(of('idna')), bool(of('toml')), of('six')]")


def uv_requirements():
    if not hasattr(modal.Image, "uv_pip_install"):
        return None
    image = base().uv_pip_install("toml", requirements=[str(PROJECT / "requirements.txt")])
    return inside(image, VERSIONS + "result = [of('six'), bool(of('toml'))]")


def uv_sync():
    if not hasattr(modal.Image, "uv_sync"):
        return None
    image = base().uv_sync(str(PROJECT), groups=["tools"], extras=["extra"])
    return inside(
        image,
        VERSIONS + "result = [of('idna'), bool(of('toml')), bool(of('six')), sys.prefix]",
    )


def poetry():
    folder = HERE / "image_poetry"
    image = base().poetry_install_from_file(
        str(folder / "pyproject.toml"), str(folder / "poetry.lock")
    )
    return inside(image, VERSIONS + "result = of('six')")


def add_python():
    image = modal.Image.from_registry("ubuntu:22.04", add_python="3.12").pip_install("six")
    return inside(
        image,
        VERSIONS + "import ssl, sqlite3\n"
        "result = [sys.version_info[:2] == (3, 12), sys.prefix, bool(of('six'))]",
    )


def scratch():
    image = modal.Image.from_scratch() if hasattr(modal.Image, "from_scratch") else None
    if image is None:
        return None
    image = image.add_local_file(PROJECT / "requirements.txt", "/only", copy=True)
    return built(image).startswith("im-")


def main():
    sys.path.insert(0, str(HERE))
    from reporting import Report

    check = Report().check
    for version in OLD_BUILDERS if VERSION < (1, 1) else NEW_BUILDERS:
        check(f"builder_{version}", lambda version=version: builder(version), 900)
    for method in (
        slim,
        requirements,
        pyproject,
        uv_requirements,
        uv_sync,
        poetry,
        add_python,
        scratch,
    ):
        check(method.__name__, method, 900)


if __name__ == "__main__":
    main()
