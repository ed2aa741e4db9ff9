"""What methods of Image promise, looked at from inside containers."""

import http.server
import inspect
import os
import random
import string
import sys
import threading
from pathlib import Path

import modal
import modal.experimental

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


def word():
    return "".join(random.choices(string.ascii_lowercase, k=12))


def forced():
    """A forced build makes the layer anew, an ordinary one does not."""
    text = word()

    def image(**options):
        return base().run_commands(f"cat /proc/sys/kernel/random/uuid > /made; : {text}", **options)

    code = "result = open('/made').read()"
    one, two = inside(image(), code), inside(image(), code)
    forced = inside(image(force_build=True), code)
    os.environ["MODAL_FORCE_BUILD"] = "1"
    try:
        by_setting = inside(image(), code)
    finally:
        del os.environ["MODAL_FORCE_BUILD"]
    return one == two, len({one, forced, by_setting}), inside(image(), code) == by_setting


def aside():
    """With MODAL_IGNORE_CACHE all is built anew, and what others use stays."""
    text = word()

    def image():
        return base().run_commands(f"cat /proc/sys/kernel/random/uuid > /made; : {text}")

    code = "result = open('/made').read()"
    one = inside(image(), code)
    os.environ["MODAL_IGNORE_CACHE"] = "1"
    try:
        other = inside(image(), code)
    finally:
        del os.environ["MODAL_IGNORE_CACHE"]
    return one != other, inside(image(), code) == one


class Handler(http.server.BaseHTTPRequestHandler):
    """A file by URL."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"from afar")

    def log_message(self, *_):
        pass


def instructions():
    """What only a Dockerfile can say."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        image = (
            base()
            .dockerfile_commands(
                [
                    "ONBUILD RUN echo triggered >> /triggered",
                    "HEALTHCHECK --interval=5s --retries=2 CMD exit 1",
                    "VOLUME /data",
                    "STOPSIGNAL SIGINT",
                    "EXPOSE 8080/tcp",
                    "LABEL a=b",
                    "MAINTAINER somebody",
                    f"ADD http://127.0.0.1:{server.server_port}/file.txt /got/",
                    "RUN <<EOF",
                    "echo one > /data/lines",
                    "echo two >> /data/lines",
                    "EOF",
                    'RUN ["/bin/sh", "-c", "echo $0 > /exec"]',
                ]
            )
            .run_commands("wc -l < /triggered > /count")
            .run_commands("wc -l < /triggered >> /count")
        )
        found = inside(
            image,
            READ + "result = [read('/count').split(), read('/got/file.txt'), "
            "read('/data/lines').split(), read('/exec')]",
        )
        server.shutdown()
    return found


def imported():
    """What stands below ``imports`` is imported in the container only, and may be missing here."""
    image = base().pip_install("toml")
    with image.imports():
        import nowhere_to_be_found  # noqa: F401
    return inside(image, "import toml\nresult = toml.__name__")


def deleted():
    """An image that was deleted is unknown; ``None`` for clients without."""
    delete = getattr(modal.experimental, "image_delete", None)
    if delete is None:
        return None
    image_id = build(base().run_commands(f": {word()}"))
    delete(image_id)
    return inside(modal.Image.from_id(image_id), "result = 1")


def names():
    """Publish, look up, by id; ``None`` for clients without."""
    if not hasattr(modal.Image, "publish"):
        return None
    name = f"conformance-{word()}"
    image = base().run_commands("echo published > /named")
    image_id = build(image)
    image.publish(f"{name}:v1")
    code = "result = open('/named').read().strip()"
    found = inside(modal.Image.from_name(f"{name}:v1"), code)
    return found, inside(modal.Image.from_id(image_id), code), name, image_id


def no_name():
    if not hasattr(modal.Image, "publish"):
        return None
    return inside(modal.Image.from_name("conformance-no-such-image"), "result = 1")


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
    check("instructions", instructions, 300)
    check("imported", imported, 300)
    check("forced", forced, 300)
    check("aside", aside, 300)
    check("names", names, 300)
    check("no_name", no_name, 300)
    check("deleted", deleted, 300)
    check("failed_command", lambda: build(base().run_commands("echo last words; exit 9")), 300)
    check("failed_function", lambda: build(base().run_function(spoil)), 300)
    check("alpine", lambda: build(modal.Image.from_registry("python:3.12-alpine")), 300)
    check("micromamba", lambda: build(modal.Image.micromamba()), 300)
    check("unknown_line", lambda: build(base().dockerfile_commands(["", "FETCH x"])), 300)


if __name__ == "__main__":
    main()
