"""Every public method of Volume that needs no container, on both volume versions."""

import hashlib
import io
import os
import sys
import tempfile
import uuid
from pathlib import Path

import modal
from reporting import Report

VERSION = tuple(int(part) for part in modal.__version__.split("."))
MEBI = 1024 * 1024
RUN = uuid.uuid4().hex[:8]
report = Report()


def entries(volume, path="/", recursive=False):
    found = volume.listdir(path, recursive=recursive)
    return sorted([entry.path, entry.type.name, entry.size] for entry in found)


def content(volume, path):
    return b"".join(volume.read_file(path))


def upload(volume, files, force=False):
    with volume.batch_upload(force=force) as batch:
        for path, data in files.items():
            batch.put_file(io.BytesIO(data), path)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def delete(name):
    if VERSION >= (1, 1, 2):
        modal.Volume.objects.delete(name)
    else:
        modal.Volume.delete(name)


# ── files, on one version of volumes ──────────────────────────────────────────────────────────


def files(version):
    def check(name, call, timeout=60.0):
        report.check(f"v{version}_{name}", call, timeout)

    name = f"files-{RUN}-{version}"
    volume = modal.Volume.from_name(name, create_if_missing=True, version=version)
    volume.hydrate()
    note = report.note
    note(f"v{version}_id", volume.object_id)

    check("empty", lambda: entries(volume))

    def upload_files():
        upload(
            volume,
            {
                "/hello.txt": b"hello",
                "a/b/deep.bin": b"\0\1\2",
                "/empty": b"",
                "zeros": bytes(5000),
            },
        )
        return entries(volume, recursive=True)

    check("upload", upload_files)
    check("list_root", lambda: entries(volume))
    check("list_with_slash", lambda: entries(volume, "/a/"))
    check("list_file", lambda: entries(volume, "/a/b/deep.bin"))
    check("list_missing", lambda: entries(volume, "/nothing"))
    check("list_glob", lambda: entries(volume, "/a/*"))
    check("iterdir", lambda: sorted(entry.path for entry in volume.iterdir("/", recursive=True)))
    check("mtime", lambda: volume.listdir("/hello.txt")[0].mtime)
    check("read", lambda: content(volume, "hello.txt").decode())
    check("read_empty", lambda: len(content(volume, "/empty")))
    check("read_zeros", lambda: sha256(content(volume, "zeros")) == sha256(bytes(5000)))
    check("read_missing", lambda: content(volume, "nothing"))
    check("read_directory", lambda: content(volume, "a"))
    check("dots", lambda: upload(volume, {"a/../../x": b"no"}))
    check("again", lambda: upload(volume, {"/hello.txt": b"other"}))
    check("again_kept", lambda: content(volume, "hello.txt").decode())

    def forced():
        upload(volume, {"/hello.txt": b"replaced"}, force=True)
        return content(volume, "hello.txt").decode()

    check("forced", forced)
    check("over_directory", lambda: upload(volume, {"/a": b"no"}, force=True))
    check("below_file", lambda: upload(volume, {"/hello.txt/x": b"no"}, force=True))

    def all_or_nothing():
        try:
            upload(volume, {"/new-one": b"1", "/hello.txt": b"2"})
        except FileExistsError:
            return [path for path, _, _ in entries(volume) if path == "new-one"]
        return "no error"

    check("all_or_nothing", all_or_nothing)

    def paths_and_modes():
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder, "tree")
            (tree / "inner").mkdir(parents=True)
            (tree / "inner" / "one.txt").write_text("one")
            (tree / "two.txt").write_text("two")
            (tree / "not").mkdir()
            single = Path(folder, "single")
            single.write_bytes(os.urandom(100))
            with volume.batch_upload() as batch:
                batch.put_directory(tree, "/tree")
                batch.put_directory(str(tree), "/flat", recursive=False)
                batch.put_file(single, "/single", mode=0o755)
            same = content(volume, "single") == single.read_bytes()
        return [same, entries(volume, "/tree", recursive=True), entries(volume, "/flat")]

    check("put_directory", paths_and_modes)

    def large():
        data = os.urandom(9 * MEBI) + bytes(9 * MEBI) + os.urandom(3 * MEBI + 17) + bytes(1000)
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            with volume.batch_upload() as batch:
                batch.put_file(file.name, "/large")
        target = io.BytesIO()
        count = volume.read_file_into_fileobj("/large", target)
        return [
            sha256(content(volume, "large")) == sha256(data),
            sha256(target.getvalue()) == sha256(data),
            count == len(data),
            volume.listdir("/large")[0].size == len(data),
        ]

    check("large", large, 120.0)

    def repeated_blocks():
        block = os.urandom(8 * MEBI)
        with tempfile.NamedTemporaryFile() as file:
            file.write(block * 3)
            file.flush()
            with volume.batch_upload() as batch:
                batch.put_file(file.name, "/repeated-1")
                batch.put_file(file.name, "/repeated-2")
        return sha256(content(volume, "repeated-2")) == sha256(block * 3)

    check("repeated_blocks", repeated_blocks, 120.0)

    def many_small():
        upload(volume, {f"/many/{number:04}": b"%d" % number for number in range(300)})
        return [len(entries(volume, "/many")), content(volume, "/many/0123").decode()]

    check("many_small", many_small)

    async def aio():
        async with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"async"), "/async")
        parts = [part async for part in volume.read_file.aio("/async")]
        return b"".join(parts).decode()

    check("aio", aio)
    check(
        "copy_file",
        lambda: (volume.copy_files(["hello.txt"], "copied"), content(volume, "copied").decode())[1],
    )

    def copy_into():
        volume.copy_files(["hello.txt", "/zeros"], "/a")
        return entries(volume, "/a")

    check("copy_into", copy_into)
    check("copy_missing", lambda: volume.copy_files(["nothing"], "x"))
    check("copy_many_to_file", lambda: volume.copy_files(["hello.txt", "zeros"], "/x"))
    check("copy_directory_plain", lambda: volume.copy_files(["a"], "a2"))
    check("copy_to_itself", lambda: volume.copy_files(["hello.txt"], "hello.txt"))
    check("copy_without_folder", lambda: volume.copy_files(["hello.txt"], "no/where/x"))

    def copy_recursive():
        volume.copy_files(["tree"], "tree2", recursive=True)
        volume.copy_files(["tree"], "tree2", recursive=True)
        return entries(volume, "/tree2", recursive=True)

    check("copy_recursive", copy_recursive)
    check("copy_into_itself", lambda: volume.copy_files(["tree"], "tree/inner", recursive=True))

    def remove():
        volume.remove_file("/copied")
        return [path for path, _, _ in entries(volume) if path == "copied"]

    check("remove", remove)
    check("remove_missing", lambda: volume.remove_file("copied"))
    check("remove_directory_plain", lambda: volume.remove_file("a"))
    check("remove_root", lambda: volume.remove_file("/", recursive=True))

    def remove_recursive():
        volume.remove_file("/a", recursive=True)
        kept = [path for path, _, _ in entries(volume, recursive=True) if path.startswith("a/")]
        upload(volume, {"/a": b"a file now"})
        return [kept, content(volume, "/a").decode()]

    check("remove_recursive", remove_recursive)

    def read_only_handle():
        handle = volume.read_only()
        text = content(handle, "/hello.txt").decode()
        try:
            handle.remove_file("/hello.txt")
        except modal.exception.InvalidError as error:
            return [text, str(error)]
        return "removed"

    check("read_only_handle", read_only_handle)
    check("commit_outside", volume.commit)
    check("reload_outside", volume.reload)

    if VERSION >= (1, 3, 4):
        check(
            "from_id", lambda: content(modal.Volume.from_id(volume.object_id), "hello.txt").decode()
        )
        check("from_id_missing", lambda: modal.Volume.from_id("vo-" + "x" * 22).hydrate())
    delete(name)
    check("after_delete", lambda: entries(volume))
    check("upload_after_delete", lambda: upload(volume, {"/late": b"x"}))


# ── volumes ───────────────────────────────────────────────────────────────────────────────────


def lookups():
    check = report.check
    check("lookup_missing", lambda: modal.Volume.from_name(f"missing-{RUN}").hydrate())
    check(
        "lookup_environment",
        lambda: modal.Volume.from_name("x", environment_name="nowhere").hydrate(),
    )

    def once():
        one = modal.Volume.from_name(f"once-{RUN}", create_if_missing=True).hydrate()
        other = modal.Volume.from_name(f"once-{RUN}", create_if_missing=True).hydrate()
        found = modal.Volume.from_name(f"once-{RUN}").hydrate()
        return [one.object_id[:3], len({one.object_id, other.object_id, found.object_id})]

    check("once", once)
    modal.Volume.from_name(f"first-{RUN}", create_if_missing=True, version=1).hydrate()
    if VERSION >= (1, 2):
        check("other_version", lambda: modal.Volume.from_name(f"first-{RUN}", version=2).hydrate())

    def rename():
        old = modal.Volume.from_name(f"old-{RUN}", create_if_missing=True).hydrate()
        upload(old, {"/kept": b"kept"})
        modal.Volume.rename(f"old-{RUN}", f"new-{RUN}")
        new = modal.Volume.from_name(f"new-{RUN}").hydrate()
        return [new.object_id == old.object_id, content(new, "kept").decode()]

    check("rename", rename)
    check("rename_gone", lambda: modal.Volume.from_name(f"old-{RUN}").hydrate())
    check("rename_taken", lambda: modal.Volume.rename(f"new-{RUN}", f"once-{RUN}"))
    check("rename_bad", lambda: modal.Volume.rename(f"new-{RUN}", "no spaces"))
    check("delete_missing", lambda: delete(f"missing-{RUN}"))

    def ephemeral():
        with modal.Volume.ephemeral() as volume:
            upload(volume, {"/x": b"short"})
            return [content(volume, "x").decode(), volume.object_id[:3]]

    check("ephemeral", ephemeral)

    async def ephemeral_aio():
        async with modal.Volume.ephemeral(version=1) as volume:
            return [entry.path async for entry in volume.iterdir.aio("/")]

    check("ephemeral_aio", ephemeral_aio)
    if VERSION >= (1, 1, 2):
        managers()


def managers():
    check = report.check
    objects = modal.Volume.objects

    def create():
        objects.create(f"made-{RUN}")
        try:
            objects.create(f"made-{RUN}")
        except modal.exception.AlreadyExistsError as error:
            objects.create(f"made-{RUN}", allow_existing=True)
            return str(error)
        return "created twice"

    check("objects_create", create)

    def listing():
        for number in range(105):
            objects.create(f"page-{RUN}-{number:03}")
        found = [volume.name for volume in objects.list()]
        mine = [name for name in found if name.startswith(f"page-{RUN}-")]
        first = [volume.name for volume in objects.list(max_objects=3)]
        return [
            len(mine),
            mine[:2] == [f"page-{RUN}-104", f"page-{RUN}-103"],
            len(set(mine)),
            first == mine[:3],
        ]

    check("objects_list", listing, 120.0)
    check("objects_delete_missing", lambda: objects.delete(f"missing-{RUN}", allow_missing=True))

    def info():
        volume = modal.Volume.from_name(f"made-{RUN}")
        about = volume.info()
        return [
            about.name == f"made-{RUN}",
            about.created_at.timestamp() > 1.7e9,
            bool(about.created_by),
        ]

    if VERSION >= (1, 2):
        check("info", info)


lookups()
files(2)
files(1)
sys.exit(0)
