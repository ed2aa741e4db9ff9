"""Each changing call is carried out, its answer is lost, and the client repeats it."""

import io
import sys

import modal

RELEASE = tuple(int(part) for part in modal.__version__.split(".")[:3])


def main(suffix):
    from reporting import Report

    check = Report().check
    store = modal.Dict.from_name(f"lost-{suffix}", create_if_missing=True)
    line = modal.Queue.from_name(f"lost-{suffix}", create_if_missing=True)

    def pop():
        store.put("k", 1)
        return [store.pop("k"), "k" in store]

    check("dict_pop", pop)
    check(
        "dict_put_if_missing",
        lambda: [store.put("once", 1, skip_if_exists=True), store["once"], store.len()],
    )

    def update():
        store.update({"a": 1, "b": 2})
        return sorted(store.items())

    check("dict_update", update)

    def put():
        line.put_many([1, 2, 3])
        return line.len()

    check("queue_put", put)
    check("queue_get", lambda: [line.get(), line.get_many(1), line.get(), line.len()])
    check("queue_get_waiting", lambda: waiting(line))
    check("environment_create", lambda: modal.environments.create_environment(f"lost-{suffix}"))
    check("environment_rename", lambda: rename(f"lost-{suffix}"))
    check("environment_delete", lambda: delete_environment(f"lost-{suffix}"))
    check("secret_create", lambda: create_secret(f"lost-{suffix}"))
    if RELEASE >= (1, 1, 2):
        check("dict_create", lambda: modal.Dict.objects.create(f"lost-{suffix}-new"))
        check("queue_create", lambda: modal.Queue.objects.create(f"lost-{suffix}-new"))
        check("dict_delete", lambda: modal.Dict.objects.delete(f"lost-{suffix}-new"))
        check("queue_delete", lambda: modal.Queue.objects.delete(f"lost-{suffix}-new"))
        check("secret_delete", lambda: modal.Secret.objects.delete(f"lost-{suffix}"))
        modal.Volume.objects.create(f"lost-{suffix}-new")
        check("volume_delete", lambda: modal.Volume.objects.delete(f"lost-{suffix}-new"))
        check("volume_create", lambda: modal.Volume.objects.create(f"lost-{suffix}-other"))
    for version in (1, 2):
        volumes(check, f"lost-{suffix}-{version}", version)


def volumes(check, name, version):
    volume = modal.Volume.from_name(name, create_if_missing=True, version=version)

    def upload():
        with volume.batch_upload() as batch:
            batch.put_file(io.BytesIO(b"content"), "/file.txt")
        return b"".join(volume.read_file("file.txt")).decode()

    def copy():
        volume.copy_files(["file.txt"], "copy.txt")
        return sorted(entry.path for entry in volume.listdir("/"))

    def remove():
        volume.remove_file("file.txt")
        return [entry.path for entry in volume.listdir("/")]

    check(f"volume_{version}_put", upload)
    check(f"volume_{version}_copy", copy)
    check(f"volume_{version}_remove", remove)


def rename(name):
    modal.environments.update_environment(name, new_name=f"{name}-renamed")


def delete_environment(name):
    modal.environments.delete_environment(f"{name}-renamed")
    left = [item.name for item in modal.environments.list_environments()]
    return [name in left, f"{name}-renamed" in left]


def waiting(line):
    """A get that waits when the item comes."""
    import threading

    timer = threading.Timer(1.0, lambda: line.put("late"))
    timer.start()
    found = line.get(timeout=30)
    timer.join()
    return [found, line.len()]


def create_secret(name):
    if RELEASE >= (1, 1, 2):
        modal.Secret.objects.create(name, {"A": "1"})
    else:
        modal.Secret.create_deployed(name, {"A": "1"})


if __name__ == "__main__":
    main(sys.argv[1])
