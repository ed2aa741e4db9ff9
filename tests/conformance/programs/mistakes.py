"""Requests that cannot be carried out: each must end in an exception of the client's own."""

import modal

app = modal.App("conformance-mistakes")
MEBI = 1024 * 1024


def run(image=None, **options):
    """Start an app with one function of those options and call it."""
    small = modal.App("conformance-mistake")

    @small.function(image=image, serialized=True, **options)
    def nothing():
        return "ran"

    with small.run():
        return nothing.remote()


def main():
    from reporting import Report

    check = Report().check
    debian = modal.Image.debian_slim(python_version="3.11")
    check("no_mistake", run, timeout=600)  # has the default image built
    check("unknown_app", lambda: modal.Function.from_name("no-such-app", "f").remote())
    check("unknown_class", lambda: modal.Cls.from_name("no-such-app", "C")().f.remote())
    check("unknown_secret", lambda: run(secrets=[modal.Secret.from_name("no-such-secret")]))
    check("unknown_volume", lambda: run(volumes={"/data": modal.Volume.from_name("no-such-vol")}))
    check("unknown_environment", unknown_environment)
    check("unknown_call", lambda: modal.FunctionCall.from_id("fc-" + "0" * 22).get(timeout=5))
    check("malformed_call", lambda: modal.FunctionCall.from_id("fc-!").get(timeout=5))
    check("wrong_kind_of_id", lambda: modal.FunctionCall.from_id("fc-../etc").get(timeout=5))
    check("unknown_gpu", lambda: run(gpu="NOSUCHGPU"))
    check("unknown_python", lambda: run(modal.Image.from_registry("python:3.99-slim")))
    check("python_too_old", lambda: run(modal.Image.debian_slim(python_version="3.7")))
    check("unknown_image", lambda: run(modal.Image.from_registry("nowhere.invalid/no/image:1")))
    check("unknown_package", lambda: run(debian.pip_install("no-such-package-at-all-xyzzy")))
    check("failing_command", lambda: run(debian.run_commands("echo before; exit 9")))
    check("more_than_a_node", more_than_a_node)
    check("too_large", too_large, timeout=120)


def unknown_environment():
    with modal.App("conformance-mistake").run(environment_name="no-such-environment"):
        return "ran"


def more_than_a_node():
    """Runs all the same, with what the largest node has; the client shows a warning."""
    with modal.enable_output():
        return run(memory=100_000_000, cpu=1000)


def too_large():
    return run(secrets=[modal.Secret.from_dict({"BIG": "x" * (300 * MEBI)})])


if __name__ == "__main__":
    main()
