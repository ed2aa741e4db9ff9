"""What methods of Image promise, looked at from inside containers."""

import inspect
import os
import sys
from pathlib import Path

import modal

HERE = Path(__file__).parent
BASE = "python:3.11-slim-bookworm"
FACTOR = 6


def probe(code):
    """Run ``code`` in the container; what it leaves in ``result``."""
    names = {}
    exec(code, names)
    return names["result"]


def bake(name, *, times=1):
    """A step of an image that is a function."""
    print("baking", name)
    Path("/baked").mkdir()
    for number in range(times):
        Path(f"/baked/{name}{number}").write_text(os.environ["TOPPING"] * FACTOR)
    Path("/root/.profile").unlink()


def spoil():
    raise ValueError("the oven is cold")


def inside(image, code, **options):
    """What ``code`` finds in a container of ``image``."""
    app = modal.App("conformance-images")
    function = app.function(image=image, **options)(probe)
    with app.run():
        return function.remote(code)


def build(image):
    """Build ``image``; its id."""
    app = modal.App("conformance-images")
    if not hasattr(image, "build"):
        app.function(image=image)(probe)
        with app.run():
            return image.object_id
    with app.run():
        return image.build(app).object_id


def base():
    return modal.Image.from_registry(BASE)


READ = "from pathlib import Path\nread = lambda name: Path(name).read_text().strip()\n"


def settings():
    image = (
        base()
        .env({"A": "x y", "B": "$PATH", "C": "it's"})
        .workdir("/srv/app dir")
        .run_commands("pwd > where", 'printf "%s" "$A|$B|$C" > values')
        .shell(["/bin/bash", "-c"])
        .run_commands("echo ${A/x/z} > bashism")
        .pipe(lambda image, text: image.run_commands(f"echo {text} > piped"), "through")
        if hasattr(modal.Image, "pipe")
        else base()
        .env({"A": "x y", "B": "$PATH", "C": "it's"})
        .workdir("/srv/app dir")
        .run_commands("pwd > where", 'printf "%s" "$A|$B|$C" > values')
        .shell(["/bin/bash", "-c"])
        .run_commands("echo ${A/x/z} > bashism", "echo through > piped")
    )
    return inside(
        image,
        READ + "import os\nresult = [read(n) for n in ('where', 'values', 'bashism', 'piped')]\n"
        "result += [os.getcwd(), os.environ['A'], os.environ['B'], os.environ['C']]",
    )


def local_files():
    folder = HERE / "image_context" / "sub"
    image = (
        base()
        .add_local_dir(folder, "/copied", copy=True, ignore=["*.md"])
        .add_local_file(folder / "two.md", "/copied/as.md", copy=True)
        .run_commands("ls /copied > /seen")
        .add_local_dir(folder, "/mounted")
        .add_local_file(folder / "one.txt", "/mounted/file.txt")
        .add_local_python_source("reporting")
    )
    return inside(
        image,
        READ + "import os, reporting\nresult = [read('/seen').split(), read('/copied/as.md'),"
        " sorted(os.listdir('/mounted')), reporting.__name__]",
    )


def entrypoint():
    script = '#!/bin/sh\\nexport FROM_ENTRYPOINT=yes\\nexec "$@"\\n'
    image = (
        base()
        .run_commands(f"printf '{script}' > /start && chmod +x /start")
        .entrypoint(["/start"])
        .dockerfile_commands(['CMD ["ignored"]'])
    )
    return inside(image, "import os\nresult = os.environ.get('FROM_ENTRYPOINT')")


def packages():
    image = base().pip_install("six==1.16.0", "idna")
    if hasattr(image, "uv_pip_install"):
        image = image.uv_pip_install("toml", extra_options="--no-deps")
    else:
        image = image.pip_install("toml")
    return inside(
        image,
        "import glob, importlib.metadata as m, toml, idna\n"
        "result = [m.version('six'), toml.__name__, "
        "bool(glob.glob('/usr/local/lib/python3.11/site-packages/**/toml/__pycache__', "
        "recursive=True))]",
    )


def function_step():
    image = (
        base()
        .run_commands("touch /root/.profile")
        .run_function(
            bake,
            args=("bread",),
            kwargs={"times": 2},
            secrets=[modal.Secret.from_dict({"TOPPING": "oil"})],
        )
    )
    return inside(
        image,
        READ + "import os\nresult = [read('/baked/bread1'), sorted(os.listdir('/baked')), "
        "os.path.exists('/root/.profile'), 'TOPPING' in os.environ]",
    )


def dockerfile():
    context = HERE / "image_context"
    takes_args = "build_args" in inspect.signature(modal.Image.from_dockerfile).parameters
    options = {"build_args": {"FLAVOUR": "sweet"}} if takes_args else {}
    image = modal.Image.from_dockerfile(context / "Dockerfile", context_dir=context, **options)
    found = inside(
        image,
        READ + "import os, pwd\ninfo = os.stat('/made/listing')\n"
        "result = {'listing': read('/made/listing').split(), 'inline': read('/made/inline'),\n"
        " 'owner': pwd.getpwuid(info.st_uid).pw_name, 'mode': oct(info.st_mode & 0o777),\n"
        " 'unpacked': read('/unpacked/packed.txt'), 'texts': os.listdir('/texts'),\n"
        " 'users': [read('/made/user'), read('/tmp/other')], 'cwd': os.getcwd(),\n"
        " 'env': [os.environ['FLAVOUR'], os.environ['QUOTED']],\n"
        " 'cache': os.path.exists('/var/cache/made')}",
    )
    return found, "sweet" if takes_args else "plain"


def main():
    sys.path.insert(0, str(HERE))
    from reporting import Report

    check = Report().check
    check("settings", settings, 300)
    check("local_files", local_files, 300)
    check("entrypoint", entrypoint, 300)
    check("packages", packages, 300)
    check("function_step", function_step, 300)
    check("dockerfile", dockerfile, 300)
    check("failed_command", lambda: build(base().run_commands("echo last words; exit 9")), 300)
    check("failed_function", lambda: build(base().run_function(spoil)), 300)
    check("alpine", lambda: build(modal.Image.from_registry("python:3.12-alpine")), 300)
    check("micromamba", lambda: build(modal.Image.micromamba()), 300)
    check("unknown_line", lambda: build(base().dockerfile_commands(["", "FETCH x"])), 300)


if __name__ == "__main__":
    main()
