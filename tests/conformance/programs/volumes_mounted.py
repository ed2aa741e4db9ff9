"""Volumes in containers: written, committed, reloaded, seen elsewhere, mounted with options."""

import os
import shutil
import subprocess
import time
import uuid

import modal

app = modal.App("conformance-volumes-mounted")
VERSION = tuple(int(part) for part in modal.__version__.split("."))
SUFFIX = modal.__version__.replace(".", "-")
volume = modal.Volume.from_name(f"mounted-{SUFFIX}", create_if_missing=True)
first = modal.Volume.from_name(f"mounted-v1-{SUFFIX}", create_if_missing=True, version=1)
PATH = "/data/shared"
OPTIONS = (
    {"read_only": volume.with_mount_options(read_only=True)}
    if VERSION >= (1, 4, 3)
    else {"read_only": volume.read_only()}
)
if VERSION >= (1, 4, 3):
    OPTIONS["sub_path"] = volume.with_mount_options(sub_path="/users/me")
    OPTIONS["sub_path_read_only"] = volume.with_mount_options(sub_path="new/dir", read_only=True)


def tree(folder=PATH):
    return sorted(
        os.path.relpath(os.path.join(root, name), folder)
        for root, folders, files in os.walk(folder)
        for name in folders + files
    )


def read(name, folder=PATH):
    try:
        with open(os.path.join(folder, name)) as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(name, text, folder=PATH):
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


@app.function(volumes={PATH: volume})
def write_and_commit(files):
    for name, text in files.items():
        write(name, text)
    volume.commit()
    return [os.environ["MODAL_TASK_ID"], tree()]


@app.function(volumes={PATH: volume}, max_containers=1)
def reader(name, reload):
    """Always the same container, so it sees what it saw until it reloads."""
    if reload:
        volume.reload()
    return [os.environ["MODAL_TASK_ID"], read(name)]


@app.function(volumes={PATH: volume}, max_containers=1)
def leave_at_exit(name, text):
    write(name, text)
    return os.environ["MODAL_TASK_ID"]


@app.function(volumes={PATH: volume})
def write_and_wait(name, text, seconds):
    write(name, text)
    time.sleep(seconds)


@app.function(volumes={PATH: volume})
def write_and_die(name, text):
    write(name, text)
    os.kill(os.getpid(), 9)


@app.function(volumes={PATH: volume})
def change_everything():
    """What programs do to files; the last state of each must arrive."""
    volume.reload()
    base = os.path.join(PATH, "changes")
    with open(f"{base}/append", "a") as file:
        file.write(" more")
    os.unlink(f"{base}/gone")
    os.rename(f"{base}/folder", f"{base}/renamed")
    shutil.rmtree(f"{base}/tree")
    os.mkdir(f"{base}/tree")
    write("changes/tree/fresh", "fresh")
    os.chmod(f"{base}/script", 0o755)
    os.symlink("append", f"{base}/link")
    os.mkdir(f"{base}/empty")
    os.utime(f"{base}/old", (1e9, 1e9))
    write("changes/renamed/inner/added", "added")
    with open(f"{base}/sparse", "wb") as file:
        file.truncate(20 * 1024 * 1024)
        file.seek(9 * 1024 * 1024)
        file.write(b"in the middle")
    volume.commit()
    os.unlink(f"{base}/renamed/x")
    write("changes/file-then-folder/x", "1")
    volume.commit()
    shutil.rmtree(f"{base}/file-then-folder")
    write("changes/file-then-folder", "2")
    volume.commit()
    return tree(base)


@app.function(volumes={PATH: volume})
def look_at_changes():
    base = os.path.join(PATH, "changes")
    with open(f"{base}/sparse", "rb") as file:
        sparse = file.read()
    return {
        "tree": tree(base),
        "append": read("changes/append"),
        "script": oct(os.stat(f"{base}/script").st_mode & 0o777),
        "link": [os.readlink(f"{base}/link"), read("changes/link")],
        "old": os.stat(f"{base}/old").st_mtime,
        "sparse": [
            len(sparse),
            sparse[9 * 1024 * 1024 :][:13].decode(),
            sparse.count(0) == len(sparse) - 13,
        ],
        "file": read("changes/file-then-folder"),
    }


@app.function(volumes={PATH: volume})
def reload_with_open_file():
    write("open-file", "x")
    found = {}
    with open(f"{PATH}/open-file") as file:
        try:
            volume.reload()
        except RuntimeError as error:
            found["open"] = str(error)
        file.read()
        volume.commit()  # is not hindered by open files
    folder = os.getcwd()
    os.chdir(PATH)
    try:
        volume.reload()
    except RuntimeError as error:
        found["cwd"] = str(error)
    os.chdir(folder)
    child = subprocess.Popen(["sleep", "30"], cwd=PATH)
    try:
        volume.reload()
    except RuntimeError as error:
        found["child"] = str(error)
    child.kill()
    child.wait()
    volume.reload()
    found["after"] = read("open-file")
    return found


@app.function(volumes={PATH: volume})
def keep_uncommitted():
    write("uncommitted", "kept")
    volume.reload()
    return read("uncommitted")


@app.function(volumes={"/read/only": OPTIONS["read_only"]})
def in_read_only():
    found = {"seen": read("base", "/read/only")}
    try:
        write("never", "x", "/read/only")
    except OSError as error:
        found["write"] = error.errno
    volume_here = modal.Volume.from_name(f"mounted-{SUFFIX}")
    volume_here.reload()
    volume_here.commit()
    found["after"] = read("base", "/read/only")
    return found


if "sub_path" in OPTIONS:

    @app.function(volumes={"/mine": OPTIONS["sub_path"]})
    def in_sub_path(text):
        before = tree("/mine")
        write("note", text, "/mine")
        modal.Volume.from_name(f"mounted-{SUFFIX}").commit()
        return before

    @app.function(volumes={"/mine": OPTIONS["sub_path_read_only"]})
    def in_read_only_sub_path():
        return tree("/mine")


@app.function(volumes={"/one": volume, "/two": first})
def two_volumes():
    write("from-two", "1", "/one")
    write("from-two", "2", "/two")
    first.commit()
    volume.commit()
    return [read("from-two", "/one"), read("from-two", "/two")]


@app.function(volumes={"/etc/ssl": volume})
def over_files():
    return os.listdir("/etc/ssl")


@app.function()
def not_mounted():
    handle = modal.Volume.from_name(f"mounted-{SUFFIX}")
    with handle.batch_upload(force=True) as batch:
        batch.put_file(__file__, "/from-a-container")
    size = sum(len(part) for part in handle.read_file("/from-a-container"))
    try:
        handle.commit()
    except Exception as error:
        return [size == os.path.getsize(__file__), str(error)]


@app.function(volumes={PATH: volume})
def last_write(name, text):
    write(name, text)
    time.sleep(1)
    volume.commit()


@app.function(volumes={PATH: volume}, timeout=120)
def many(count):
    for number in range(count):
        write(f"many/{number // 100}/{number}", str(number))
    volume.commit()


@app.function(volumes={PATH: volume})
def count_many():
    return len(tree(f"{PATH}/many"))


@app.function(volumes={PATH: volume})
def places():
    import io

    with volume.batch_upload(force=True) as batch:  # needs to know the volume's version
        batch.put_file(io.BytesIO(b"by handle"), "/by-handle")
    volume.reload()
    assert read("by-handle") == "by handle"
    volume.remove_file("/by-handle")
    return [os.path.realpath(PATH), volume.object_id]


class Gone:
    """Volumes that are deleted while a container runs."""

    name = f"mounted-gone-{SUFFIX}"
    volume = modal.Volume.from_name(name, create_if_missing=True)


@app.function(volumes={"/gone": Gone.volume})
def commit_to_deleted():
    write("x", "1", "/gone")
    Gone.volume.commit()
    if VERSION >= (1, 1, 2):
        modal.Volume.objects.delete(Gone.name)
    else:
        modal.Volume.delete(Gone.name)
    write("y", "2", "/gone")
    try:
        Gone.volume.commit()
    except RuntimeError as error:
        return [str(error), tree("/gone")]


def content(path):
    return b"".join(volume.read_file(path)).decode()


def eventually(path, text):
    from reporting import until

    def there():
        try:
            return content(path) == text
        except FileNotFoundError:
            return False

    return until(there, timeout=60.0)


@app.local_entrypoint()
def main():
    from reporting import Report

    report = Report()
    check = report.check
    run = uuid.uuid4().hex[:8]

    for entry in volume.listdir("/"):
        volume.remove_file(entry.path, recursive=True)

    check("places", places.remote)
    check("first", lambda: write_and_commit.remote({"base": run, "folder/inner": "inner"})[1])
    check("seen_from_outside", lambda: [content("base") == run, content("folder/inner")])
    report.check("seen_in_a_new_container", lambda: reader.remote("base", False)[1] == run)

    def until_reload():
        task, before = reader.remote("base", False)
        write_and_commit.remote({"base": "newer"})
        other, stale = reader.remote("base", False)
        again, fresh = reader.remote("base", True)
        return [task == other == again, before == run, stale == run, fresh]

    check("until_reload", until_reload)

    def outside_upload():
        import io

        with volume.batch_upload(force=True) as batch:
            batch.put_file(io.BytesIO(b"from outside"), "/outside")
        return reader.remote("outside", True)[1]

    check("outside_upload", outside_upload)

    def removed_outside():
        volume.remove_file("/outside")
        return reader.remote("outside", True)[1]

    check("removed_outside", removed_outside)

    def changes():
        files = {
            "append": "some",
            "gone": "gone",
            "folder/x": "x",
            "folder/inner/y": "y",
            "tree/a": "a",
            "tree/b/c": "c",
            "script": "#!",
            "old": "old",
        }
        write_and_commit.remote({f"changes/{name}": text for name, text in files.items()})
        inside = change_everything.remote()
        return [inside, look_at_changes.remote()]

    check("changes", changes, 120.0)
    check("open_files", reload_with_open_file.remote)
    check("keep_uncommitted", lambda: [keep_uncommitted.remote(), content("uncommitted")])
    check("read_only", in_read_only.remote)
    if "sub_path" in OPTIONS:
        check(
            "sub_path",
            lambda: [
                in_sub_path.remote("one"),
                in_sub_path.remote("two"),
                content("users/me/note"),
            ],
        )
        check(
            "sub_path_read_only",
            lambda: [in_read_only_sub_path.remote(), [e.path for e in volume.listdir("/new")]],
        )
    check("two_volumes", two_volumes.remote)
    check("over_files", over_files.remote)
    check("not_mounted", not_mounted.remote)

    def last_writes():
        calls = [last_write.spawn("last/same", str(number)) for number in range(3)]
        calls += [last_write.spawn(f"last/{number}", str(number)) for number in range(3)]
        for call in calls:
            call.get()
        names = sorted(entry.path for entry in volume.listdir("/last"))
        return [names, content("last/same") in {"0", "1", "2"}]

    check("last_writes", last_writes, 120.0)

    def background():
        call = write_and_wait.spawn("background", "committed", 120)
        found = eventually("background", "committed")
        call.cancel(terminate_containers=True)
        return found

    check("background", background, 120.0)

    def killed():
        try:
            write_and_die.remote("killed", "survived")
        except Exception as error:
            return [type(error).__name__ != "", eventually("killed", "survived")]

    check("killed", killed, 120.0)
    check("many", lambda: [many.remote(1000), count_many.remote()], 180.0)
    if VERSION >= (1, 1):
        check("commit_to_deleted", commit_to_deleted.remote)
    check("leave", lambda: leave_at_exit.remote("at-exit", run)[:3])
