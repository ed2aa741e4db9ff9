"""Queues: each public method, from the local side and from containers, and what goes wrong."""

import asyncio
import os
import queue
import threading

import modal

app = modal.App("conformance-queues")
MEBI = 1024 * 1024
RELEASE = tuple(int(part) for part in modal.__version__.split(".")[:3])
NAME = f"conformance-queue-{modal.__version__}"


@app.function()
def echo(name, queue_id):
    """A container that takes work and gives results until it is told to stop."""
    work, results = modal.Queue.from_name(name), modal.Queue.from_name(name + "-results")
    if RELEASE >= (1, 3, 3):
        work = modal.Queue.from_id(queue_id)
    count = 0
    while (item := work.get(timeout=60)) is not None:
        results.put(item * 10)
        count += 1
    return count


@app.function()
def dies_waiting(name):
    """The container dies while its get waits."""
    waiting = modal.Queue.from_name(name)
    waiting.put("here", partition="alive")
    threading.Timer(2, lambda: os._exit(7)).start()
    waiting.get(partition="for the dead")


@app.function(restrict_modal_access=True)
def restricted(name):
    modal.Queue.from_name(name).put(1)


@app.local_entrypoint()
def main():
    from reporting import Report

    check = Report().check
    named(check)
    basics(check)
    partitions(check)
    waiting(check)
    scans(check)
    full(check)
    containers(check)
    missing(check)
    if RELEASE >= (1, 1, 2):
        managed(check)


def delete(name):
    if RELEASE >= (1, 1, 2):
        modal.Queue.objects.delete(name)
    else:
        modal.Queue.delete(name)


def fresh():
    found = modal.Queue.from_name(NAME, create_if_missing=True)
    found.clear(all=True)
    return found


def named(check):
    def created():
        first, again = fresh(), fresh()
        return [first.object_id, first.object_id == again.object_id]

    check("created", created)

    def deleted():
        name = NAME + "-gone"
        gone = modal.Queue.from_name(name, create_if_missing=True)
        gone.put(1)
        delete(name)
        other = modal.Queue.from_name(name, create_if_missing=True)
        try:
            return [other.len(), other.object_id != gone.object_id]
        finally:
            delete(name)

    check("deleted", deleted)
    if RELEASE >= (1, 3, 3):

        def information():
            shared = fresh()
            again = modal.Queue.from_id(shared.object_id)
            info = again.info()
            return [again.name, info.name, bool(info.created_by), info.created_at.year > 2000]

        check("information", information)


def basics(check):
    shared = fresh()

    def in_order():
        for value in ("ß", 2, {"k": (3,)}):
            shared.put(value)
        return [shared.len(), shared.get(), shared.get(), shared.get() == {"k": (3,)}, shared.len()]

    check("in_order", in_order)

    def many():
        shared.put_many(list(range(10)))
        found = [shared.get_many(3), shared.get_many(100), shared.len()]
        shared.put_many([])
        return [*found, shared.len()]

    check("many", many)
    check("empty_now", lambda: [shared.get(block=False), shared.get_many(5, block=False)])
    check("empty_later", lambda: shared.get(timeout=0.3))
    check("empty_many_later", lambda: shared.get_many(2, timeout=0.3))
    check("empty_past", lambda: shared.get(timeout=-1))
    check("none_is_a_value", lambda: [shared.put(None), shared.len(), shared.get(), shared.len()])
    check("no_count", lambda: shared.get_many(0, block=False))

    def cleared():
        shared.put_many([1, 2, 3])
        shared.clear()
        return [shared.len(), shared.get(block=False)]

    check("clear", cleared)

    async def aio():
        await shared.put.aio(1)
        await shared.put_many.aio([2, 3])
        found = [await shared.len.aio(), await shared.get.aio(), await shared.get_many.aio(5)]
        await shared.clear.aio()
        return found

    check("aio", aio)

    async def none_twice():
        """Many producers and consumers at once: each item comes out once."""
        await asyncio.gather(*[shared.put_many.aio([n, n + 1000]) for n in range(100)])
        found = await asyncio.gather(*[shared.get_many.aio(4, block=False) for _ in range(60)])
        values = [value for some in found for value in some]
        return [len(values), len(set(values)), await shared.len.aio()]

    check("none_twice", none_twice)

    def large():
        value = os.urandom(MEBI - 100)
        shared.put(value)
        return shared.get() == value

    check("item_1mb", large)

    def ephemeral():
        with modal.Queue.ephemeral() as first, modal.Queue.ephemeral() as second:
            first.put(1)
            return [first.len(), second.len(), first.get(), first.object_id != second.object_id]

    check("ephemeral", ephemeral)


def partitions(check):
    shared = fresh()

    def apart():
        shared.put("default")
        shared.put("a1", partition="a")
        shared.put_many(["b1", "b2"], partition="b")
        found = [shared.len(), shared.len(partition="b"), shared.len(total=True)]
        found += [shared.get(partition="a"), shared.get(block=False, partition="a")]
        found += [shared.get_many(9, partition="b"), shared.get()]
        return found

    check("partitions", apart)

    def cleared():
        for partition in ("a", "b", "c"):
            shared.put(1, partition=partition)
        shared.clear(partition="a")
        found = [shared.len(total=True), shared.len(partition="a")]
        shared.clear(all=True)
        return [*found, shared.len(total=True)]

    check("partitions_cleared", cleared)

    def expired():
        from reporting import until

        shared.put(1, partition="short", partition_ttl=2)
        shared.put(1, partition="long")
        shared.put(2, partition="extended", partition_ttl=1)
        shared.put(3, partition="extended")
        gone = until(lambda: shared.len(partition="short") == 0)
        kept = [shared.len(partition="long"), shared.get_many(5, partition="extended")]
        return [gone, shared.get(block=False, partition="short"), *kept]

    check("partition_ttl", expired)
    check("key_too_long", lambda: shared.put(1, partition="x" * 65))
    check("key_empty", lambda: shared.put(1, partition=""))
    check("key_64", lambda: [shared.put(1, partition="ß" * 32), shared.get(partition="ß" * 32)])
    check("clear_both", lambda: shared.clear(partition="a", all=True))
    check("len_both", lambda: shared.len(partition="a", total=True))


def waiting(check):
    shared = fresh()

    async def woken():
        getter = asyncio.create_task(shared.get.aio(timeout=30))
        await asyncio.sleep(0.5)
        await shared.put.aio("late")
        return await getter

    check("woken", woken)

    async def fair():
        """Those who wait are served in the order they came."""
        order = []

        async def get(number):
            order.append((number, await shared.get.aio(timeout=30)))

        getters = []
        for number in range(5):
            getters.append(asyncio.create_task(get(number)))
            await asyncio.sleep(0.2)
        await shared.put_many.aio(list(range(5)))
        await asyncio.gather(*getters)
        return sorted(order) == [(n, n) for n in range(5)]

    check("fair", fair)

    async def crowd():
        getters = [asyncio.create_task(shared.get.aio(timeout=60)) for _ in range(500)]
        await asyncio.sleep(1)
        await shared.put_many.aio(list(range(500)))
        return sorted(await asyncio.gather(*getters)) == list(range(500))

    check("crowd", crowd, timeout=120)

    async def cancelled():
        """A getter that was given up takes nothing."""
        getters = [asyncio.create_task(shared.get.aio(timeout=30)) for _ in range(20)]
        await asyncio.sleep(1)
        for getter in getters:
            getter.cancel()
        await asyncio.gather(*getters, return_exceptions=True)
        await asyncio.sleep(0.5)
        await shared.put_many.aio(list(range(20)))
        return await shared.get_many.aio(50)

    check("cancelled_getters", cancelled)

    def deleted():
        name = NAME + "-deleted"
        doomed = modal.Queue.from_name(name, create_if_missing=True)
        doomed.len()

        async def wait():
            getter = asyncio.create_task(doomed.get.aio(timeout=30))
            await asyncio.sleep(0.5)
            await asyncio.to_thread(delete, name)
            await getter

        asyncio.run(wait())

    check("deleted_while_waiting", deleted)


def scans(check):
    shared = fresh()

    def iterated():
        shared.put_many(list(range(450)))
        shared.put("x", partition="p")
        found = list(shared.iterate())
        return [found == list(range(450)), shared.len(), list(shared.iterate(partition="p"))]

    check("iterate", iterated)

    async def followed():
        """A scan goes on with what is put while it waits, also after what it saw was taken."""
        await shared.clear.aio(all=True)
        await shared.put_many.aio([0, 1])
        found = []

        async def follow():
            async for value in shared.iterate.aio(item_poll_timeout=3.0):
                found.append(value)

        scan = asyncio.create_task(follow())
        await asyncio.sleep(1)
        await shared.get_many.aio(2)
        for value in (2, 3, 4):
            await shared.put.aio(value)
            await asyncio.sleep(0.3)
        await scan
        return found

    check("iterate_follows", followed)
    check("iterate_empty", lambda: list(modal.Queue.from_name(NAME).iterate(partition="none")))
    shared.clear(all=True)


def full(check):
    shared = fresh()

    def filled():
        shared.put_many(list(range(4999)))
        shared.put_many([4999], block=False)
        return shared.len()

    check("filled", filled)
    check("full_now", lambda: shared.put(1, block=False))
    check("full_many_now", lambda: shared.put_many([1, 2], block=False))
    check("full_later", lambda: shared.put(1, timeout=0.6))
    check("full_keeps", shared.len)
    check("full_others", lambda: [shared.put(1, partition="other"), shared.len(partition="other")])

    async def room():
        putter = asyncio.create_task(shared.put.aio("at last", timeout=30))
        await asyncio.sleep(0.5)
        await shared.get_many.aio(10)
        await putter
        return [await shared.len.aio(), (await shared.get_many.aio(5000))[-1]]

    check("full_waits_for_room", room)
    check("too_many", lambda: shared.put_many(list(range(5001)), block=False))
    check("item_too_large", lambda: shared.put(bytes(MEBI), block=False))
    check("item_too_large_blocking", lambda: shared.put(bytes(MEBI)))
    check("items_too_large", lambda: shared.put_many([1, bytes(MEBI)]))
    check("items_too_large_in_all", lambda: shared.put_many([bytes(MEBI - 99)] * 65), timeout=120)
    check("message_too_large", lambda: shared.put(bytes(260 * MEBI)), timeout=120)

    def bytes_full():
        for _ in range(2):
            shared.put_many([bytes(MEBI - 100)] * 32)
        try:
            shared.put(bytes(MEBI - 100), block=False)
        except queue.Full:
            return shared.len()

    check("bytes_full", bytes_full, timeout=120)
    shared.clear(all=True)


def containers(check):
    def worked():
        shared = fresh()
        results = modal.Queue.from_name(NAME + "-results", create_if_missing=True)
        results.clear()
        calls = [echo.spawn(NAME, shared.object_id) for _ in range(2)]
        shared.put_many(list(range(20)))
        found = sorted(results.get(timeout=60) for _ in range(20))
        shared.put_many([None, None])
        counts = [call.get(timeout=60) for call in calls]
        delete(NAME + "-results")
        return [found == [10 * n for n in range(20)], sum(counts)]

    check("container", worked, timeout=180)
    check("container_restricted", lambda: restricted.remote(NAME), timeout=120)

    def dead():
        shared = fresh()
        try:
            dies_waiting.remote(NAME)
        except Exception:
            shared.put("kept", partition="for the dead")
            found = [shared.get(timeout=20, partition="alive")]
            return [*found, shared.get(timeout=20, partition="for the dead")]

    check("container_dead", dead, timeout=180)


def missing(check):
    check("no_such_queue", lambda: modal.Queue.from_name("no-such-queue").len())
    check(
        "no_such_environment",
        lambda: modal.Queue.from_name(NAME, environment_name="no-such-env").len(),
    )
    check("bad_name", lambda: modal.Queue.from_name("bad name", create_if_missing=True).len())
    if RELEASE >= (1, 3, 3):
        check("no_such_id", lambda: modal.Queue.from_id("qu-" + "0" * 22).len())

    def after_delete():
        name = NAME + "-deleted"
        handle = modal.Queue.from_name(name, create_if_missing=True)
        handle.put(1)
        delete(name)
        handle.put(2)

    check("used_after_delete", after_delete)


def managed(check):
    objects = modal.Queue.objects
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
        for one in names:
            objects.delete(one)
        return [[one for one in found if one in set(names)] == names[::-1], newest == names[:-4:-1]]

    check("list", listed, timeout=120)
    check("delete", lambda: objects.delete(name))
    check("delete_missing", lambda: objects.delete(name))
    check("delete_allow_missing", lambda: objects.delete(name, allow_missing=True))
