"""``much``: some work of every kind, that ends. ``kept``: what has a name is there, long after."""

import io
import sys

import modal

app = modal.App("retention")
LARGE = 6 * 2**20


@app.function(max_containers=1)
def work(x):
    print("working on", len(x) if isinstance(x, bytes) else x)
    return x


def much():
    app.deploy(name="retention-deployed")
    modal.Dict.from_name("retention", create_if_missing=True)["key"] = "value"
    with modal.Volume.from_name("retention", create_if_missing=True).batch_upload() as batch:
        batch.put_file(io.BytesIO(b"content"), "file")
    with app.run():
        assert list(work.map(range(20))) == list(range(20))
        assert work.remote(bytes(LARGE)) == bytes(LARGE)
        work.spawn(b"\1" * LARGE).get()
        work.spawn(1)
    deployed = modal.Function.from_name("retention-deployed", "work")
    assert deployed.spawn(2).get() == 2
    sandbox = modal.Sandbox.create("echo", "said", app=modal.App.lookup("retention-deployed"))
    sandbox.wait()
    assert sandbox.stdout.read() == "said\n"


def kept():
    assert b"".join(modal.Volume.from_name("retention").read_file("file")) == b"content"
    assert modal.Dict.from_name("retention").len() == 0  # entries that nobody used expire
    assert modal.Function.from_name("retention-deployed", "work").remote(3) == 3
    print("all is there")


if __name__ == "__main__":
    {"much": much, "kept": kept}[sys.argv[1]]()
