"""What a template's Python runs: import the client, wait, then be the client's entrypoint.

It runs in containers, with the image's Python (3.9 or later) and nothing of Homeport. On standard
input comes, when there is a task, a JSON object with the variables that are that task's own; the end
of the input without one means that nobody will need this container.
"""

import sys


def wait() -> None:
    """Import what every function container imports, and wait."""
    import os

    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.getcwd()  # as with -m; until here it is this file's directory

    import importlib
    import json

    importlib.import_module("runpy")
    package, _, module = ENTRYPOINT.rpartition(".")
    importlib.import_module(ENTRYPOINT)
    # The module itself is executed anew, as the main module; what it imports stays.
    del sys.modules[ENTRYPOINT]
    delattr(sys.modules[package], module)

    parts: list[bytes] = []
    while True:
        part = os.read(0, 65536)
        if not part:
            break
        parts.append(part)
    if not parts:
        os._exit(0)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    if null != 0:
        os.close(null)
    os.environ.update(json.loads(b"".join(parts)))
    importlib.invalidate_caches()


def become() -> None:
    """Be ``python -m modal._container_entrypoint``, in this very module and from its first line."""
    import importlib
    from typing import Any

    # What -m itself calls: like run_module, but in the real main module.
    runpy: Any = importlib.import_module("runpy")
    entrypoint = ENTRYPOINT
    own = sys.modules["__main__"].__dict__
    for name in [name for name in own if not name.startswith("__")]:
        del own[name]
    runpy._run_module_as_main(entrypoint)


ENTRYPOINT = "modal._container_entrypoint"
if __name__ == "__main__":
    wait()
    become()
