"""Dicts: each public method, from the local side and from containers, and what goes wrong."""

import asyncio
import inspect
import os

import modal

app = modal.App("conformance-dicts")
MEBI = 1024 * 1024
RELEASE = tuple(int(part) for part in modal.__version__.split(".")[:3])
NAME = f"conformance-dict-{modal.__version__}"


@app.function()
def work_on(name, dict_id):
    """A container by name and, where the client can, by id."""
    shared = modal.Dict.from_name(name)
    shared["from container"] = sorted(shared.keys())
    shared.update({"a": 10, "b": 20})
    found = {"pop": shared.pop("to pop"), "missing": shared.get("nothing", "default")}
    if RELEASE >= (1, 3, 3):
        found["by_id"] = modal.Dict.from_id(dict_id)["a"]
    own = modal.Dict.from_name(name + "-of-container", create_if_missing=True)
    own["made"] = "inside"
    return found


@app.function(restrict_modal_access=True)
def restricted(name):
    return modal.Dict.from_name(name)["a"]


@app.function()
def inherit(handle):
    """A handle that travels as an argument."""
    handle["seen"] = True
    return handle.len()


@app.local_entrypoint()
def main():
    from reporting import Report

    check = Report().check
    named(check)
    basics(check)
    many(check)
    containers(check)
    ephemeral(check)
    sizes(check)
    missing(check)
    if RELEASE >= (1, 1, 2):
        managed(check)


def delete(name):
    if RELEASE >= (1, 1, 2):
        modal.Dict.objects.delete(name)
    else:
        modal.Dict.delete(name)


def named(check):
    def created():
        first = modal.Dict.from_name(NAME, create_if_missing=True)
        first.clear()
        again = modal.Dict.from_name(NAME, create_if_missing=True)
        again.len()
        return [first.object_id, first.object_id == again.object_id]

    check("created", created)

    def deleted():
        name = NAME + "-gone"
        gone = modal.Dict.from_name(name, create_if_missing=True)
        gone["k"] = 1
        delete(name)
        fresh = modal.Dict.from_name(name, create_if_missing=True)
        try:
            return [fresh.len(), fresh.object_id != gone.object_id]
        finally:
            delete(name)

    check("deleted", deleted)
    if RELEASE >= (1, 3, 3):

        def information():
            shared = modal.Dict.from_name(NAME)
            shared.hydrate()
            again = modal.Dict.from_id(shared.object_id)
            info = again.info()
            return [again.name, info.name, bool(info.created_by), info.created_at.year > 2000]

        check("information", information)


def basics(check):
    shared = modal.Dict.from_name(NAME)

    def items():
        shared["text"] = "ß"
        shared[17] = [1, {"k": (2, 3)}]
        shared[("tuple", 1)] = None
        return [shared["text"], shared[17] == [1, {"k": (2, 3)}], shared[("tuple", 1)]]

    check("items_set_and_get", items)
    check("get_default", lambda: [shared.get("nothing"), shared.get("nothing", 5)])
    check("key_error", lambda: shared["nothing"])
    check("contains", lambda: ["text" in shared, shared.contains(17), "nothing" in shared])
    check("len", shared.len)
    check("put", lambda: [shared.put("new", 1), shared.put("new", 2), shared["new"]])
    check(
        "put_if_missing",
        lambda: [
            shared.put("once", 1, skip_if_exists=True),
            shared.put("once", 2, skip_if_exists=True),
            shared["once"],
        ],
    )

    def updated():
        shared.update({"x": 1, "y": 2}, z=3)
        shared.update(x=4)
        shared.update({})
        return [shared["x"], shared["y"], shared["z"]]

    check("update", updated)
    check("pop", lambda: [shared.pop("x"), "x" in shared])
    check("pop_missing", lambda: shared.pop("x"))

    def deleted():
        del shared["y"]
        return "y" in shared

    check("del", deleted)
    check("del_missing", lambda: shared.__delitem__("y"))
    if "default" in inspect.signature(modal.Dict.pop).parameters:
        check("pop_default", lambda: shared.pop("x", "default"))
    check("keys", lambda: sorted(map(str, shared.keys())))
    check("values", lambda: sorted(map(str, shared.values())))
    check("contents", lambda: sorted((str(k), str(v)) for k, v in shared.items()))

    async def aio():
        await shared.put.aio("async", 1)
        found = [await shared.get.aio("async"), await shared.contains.aio("async")]
        await shared.update.aio({"async": 2})
        found += [await shared.pop.aio("async"), await shared.len.aio() > 0]
        return [*found, len([key async for key in shared.keys.aio()]) > 0]

    check("aio", aio)

    def cleared():
        shared["last"] = 1
        shared.clear()
        return [shared.len(), list(shared.keys()), "last" in shared, shared.get("last")]

    check("clear", cleared)
    check("clear_again", shared.clear)

    async def race():
        """Many at once: exactly one may have put, and exactly one may have popped."""
        puts = await asyncio.gather(
            *[shared.put.aio("race", n, skip_if_exists=True) for n in range(40)]
        )
        pops = await asyncio.gather(
            *[shared.pop.aio("race") for n in range(40)], return_exceptions=True
        )
        return [puts.count(True), [value == puts.index(True) for value in pops].count(True)]

    check("race", race)


def many(check):
    shared = modal.Dict.from_name(NAME)

    def contents():
        shared.clear()
        for begin in range(0, 5000, 2500):
            shared.update({n: bytes(100) + bytes([n % 256]) for n in range(begin, begin + 2500)})
        found = dict(shared.items())
        return [shared.len(), len(found), all(v[-1] == k % 256 for k, v in found.items())]

    check("many_entries", contents, timeout=120)
    check("too_many_updates", lambda: shared.update(dict.fromkeys(range(10_001))))
    check("after_too_many", shared.len)
    shared.clear()


def containers(check):
    shared = modal.Dict.from_name(NAME)

    def used():
        shared.update({"a": 1, "to pop": "popped"})
        found = work_on.remote(NAME, shared.object_id)
        own = modal.Dict.from_name(NAME + "-of-container")
        found.update(a=shared["a"], saw=shared["from container"], made=own["made"])
        delete(NAME + "-of-container")
        return found

    check("container", used, timeout=120)
    check("container_restricted", lambda: restricted.remote(NAME), timeout=120)

    def handed():
        with modal.Dict.ephemeral() as handle:
            handle["k"] = 1
            return [inherit.remote(handle), handle["seen"]]

    check("container_handle", handed, timeout=120)


def ephemeral(check):
    def used():
        with modal.Dict.ephemeral() as first, modal.Dict.ephemeral() as second:
            first["k"] = 1
            return [first.len(), second.len(), first.object_id != second.object_id]

    check("ephemeral", used)

    async def used_aio():
        async with modal.Dict.ephemeral() as handle:
            await handle.put.aio("k", 1)
            return await handle.get.aio("k")

    check("ephemeral_aio", used_aio)


def sizes(check):
    shared = modal.Dict.from_name(NAME)

    def kept(size):
        value = os.urandom(size)
        shared["big"] = value
        found = [shared["big"] == value, dict(shared.items())["big"] == value]
        found.append(shared.pop("big") == value)
        return found

    check("value_64k", lambda: kept(65 * 1024))
    check("value_1mb", lambda: kept(MEBI + 1))
    check("value_20mb", lambda: kept(20 * MEBI), timeout=120)
    check("value_too_large_put", lambda: shared.put("big", bytes(100 * MEBI + 1)), timeout=120)
    check("value_too_large_update", lambda: shared.update(big=bytes(100 * MEBI)), timeout=120)
    check("key_too_large", lambda: shared.put(bytes(MEBI), 1))
    check("after_too_large", lambda: "big" in shared)


def missing(check):
    check("no_such_dict", lambda: modal.Dict.from_name("no-such-dict").len())
    check(
        "no_such_environment",
        lambda: modal.Dict.from_name(NAME, environment_name="no-such-env").len(),
    )
    check("bad_name", lambda: modal.Dict.from_name("bad name", create_if_missing=True).len())
    if RELEASE >= (1, 3, 3):
        check("no_such_id", lambda: modal.Dict.from_id("di-" + "0" * 22).len())

    def after_delete():
        name = NAME + "-deleted"
        handle = modal.Dict.from_name(name, create_if_missing=True)
        handle["k"] = 1
        delete(name)
        return handle["k"]

    check("used_after_delete", after_delete)


def managed(check):
    objects = modal.Dict.objects
    name = NAME + "-managed"

    def create():
        objects.create(name)
        objects.create(name, allow_existing=True)
        return [found.name for found in objects.list() if found.name == name]

    check("create", create)
    check("create_existing", lambda: objects.create(name))

    def listed():
        names = [f"{NAME}-n{number:03d}" for number in range(120)]
        for one in names:
            objects.create(one)
        found = [one.name for one in objects.list()]
        newest = [one.name for one in objects.list(max_objects=3)]
        none = objects.list(created_before="2020-01-01")
        for one in names:
            objects.delete(one)
        return [
            [one for one in found if one in set(names)] == names[::-1],
            newest == names[: -len(newest) - 1 : -1],
            len(none),
        ]

    check("list", listed, timeout=120)
    check("delete", lambda: objects.delete(name))
    check("delete_missing", lambda: objects.delete(name))
    if "allow_missing" in inspect.signature(objects.delete).parameters:
        check("delete_allow_missing", lambda: objects.delete(name, allow_missing=True))
