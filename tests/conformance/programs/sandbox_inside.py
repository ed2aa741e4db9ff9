"""A function's container that uses sandboxes: their files, by the API of its client's time."""

import modal
import modal.exception

if modal.is_local():
    from reporting import Report

RELEASE = tuple(int(part) for part in modal.__version__.split(".")[:3])
NAME = f"conformance-sandbox-inside-{modal.__version__}".replace(".", "-")
app = modal.App(NAME)
image = modal.Image.debian_slim()


@app.function(image=image, timeout=120)
def files(name):
    """The file API of clients up to 1.5."""
    import threading
    import time

    own = modal.App.lookup(name, create_if_missing=True)
    box = modal.Sandbox.create("sleep", "100", app=own, image=modal.Image.debian_slim())
    found = []
    box.mkdir("/deep/er", parents=True)
    with box.open("/deep/er/text", "w") as file:
        file.write("line one\nline two\n")
        file.flush()
    with box.open("/deep/er/text", "r") as file:
        found.append([file.readline(), file.read()])
        file.seek(5)
        found.append(file.read(3))
    with box.open("/deep/er/bytes", "wb") as file:
        file.write(bytes(range(256)) * 4096)
    with box.open("/deep/er/bytes", "rb") as file:
        found.append(file.read() == bytes(range(256)) * 4096)
    found.append(sorted(box.ls("/deep/er")))
    errors = []
    for call in (lambda: box.open("/none", "r"), lambda: box.ls("/deep/er/text")):
        try:
            call()
        except Exception as error:
            errors.append(type(error).__name__)
    found.append(errors)

    def change():
        for number in range(100):
            box.exec("sh", "-c", f"echo {number} > /deep/watched").wait()
            if seen:
                return
            time.sleep(0.1)

    seen = []
    changing = threading.Thread(target=change)
    changing.start()
    for event in box.watch("/deep", timeout=30):
        seen.append(any("watched" in path for path in event.paths))
        break
    changing.join()
    found.append(seen)
    box.rm("/deep", recursive=True)
    found.append("deep" in box.ls("/"))
    box.terminate()
    return found


@app.function(image=image, timeout=120)
def images(name):
    """What newer clients do with images, and with sidecars."""
    own = modal.App.lookup(name, create_if_missing=True)
    base = modal.Image.debian_slim()
    box = modal.Sandbox.create("sleep", "100", app=own, image=base)
    box.mount_image("/work", modal.Image.from_scratch())
    box.filesystem.write_text("from inside", "/work/file")
    made = box.snapshot_directory("/work")
    box.unmount_image("/work")
    side = box._experimental_sidecars.create("sleep", "100", name="side", image=base.build(own))
    side.mount_image("/here", made)
    text = side.filesystem.read_text("/here/file")
    box.terminate()
    return text


if __name__ == "__main__":
    report = Report()
    with app.run():
        if hasattr(modal.Sandbox, "watch"):
            report.check("files", lambda: files.remote(NAME + "-own"), 120.0)
        if RELEASE >= (1, 6, 4):
            report.check("images", lambda: images.remote(NAME + "-own"), 120.0)
