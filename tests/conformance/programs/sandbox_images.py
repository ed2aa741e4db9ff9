"""Images in running sandboxes: directories made images, images mounted and unmounted; volumes."""

import inspect
import os
from datetime import UTC

import modal
import modal.exception
from reporting import Report, raised, until

RELEASE = tuple(int(part) for part in modal.__version__.split(".")[:3])
GENERATION = "v1" if os.environ.get("MODAL_SANDBOX_V2") == "0" or RELEASE < (1, 6) else "v2"
NAME = f"conformance-sandbox-images-{modal.__version__}-{GENERATION}".replace(".", "-")

OPTIONS = inspect.signature(modal.Sandbox.create).parameters

app = None
image = modal.Image.debian_slim()


def sandbox(**options):
    return modal.Sandbox.create(app=app, image=options.pop("image", image), **options)


def sh(box, script):
    """What a script printed, with its exit code."""
    process = box.exec("sh", "-c", script)
    text = process.stdout.read() + process.stderr.read()
    return [process.wait(), text]


def ok(box, script):
    code, text = sh(box, script)
    assert code == 0, text
    return text


def directory_goes_to_another():
    """A directory of one sandbox is seen in another, with everything that a file has."""
    first = sandbox()
    ok(
        first,
        "mkdir -p /work/deep && echo one > /work/a && chmod 640 /work/a && ln -s a /work/link "
        "&& chown 12:34 /work/deep && truncate -s 1M /work/deep/hole && ln /work/a /work/twin",
    )
    made = first.snapshot_directory("/work")
    ok(first, "echo later > /work/a")
    second = sandbox()
    second.mount_image("/put/here", made)
    seen = ok(
        second,
        "cd /put/here && cat link && stat -c '%n %a %u %g %s' a deep deep/hole && stat -c %h a && ls",
    )
    files = [entry.name for entry in second.filesystem.list_files("/put/here")]
    first.terminate()
    second.terminate()
    return [made.object_id[:3], seen, sorted(files)]


def mounted_over_files():
    """What was there comes back; what is written to the image goes with it."""
    box = sandbox()
    ok(box, "mkdir /over && echo mine > /over/file")
    box.mount_image("/over", modal.Image.from_scratch())
    hidden = ok(box, "ls -A /over; echo new > /over/other; cat /over/other")
    box.unmount_image("/over")
    back = ok(box, "cat /over/*")
    box.mount_image("/over", modal.Image.from_scratch())
    again = ok(box, "ls -A /over")
    box.terminate()
    return [hidden, back, again]


def steps_of_work():
    """A snapshot of a mounted image goes on from it: changed, added and deleted files."""
    box = sandbox()
    box.mount_image("/w", modal.Image.from_scratch())
    ok(box, "cd /w && mkdir d && echo 1 > d/a && echo 1 > b && echo 1 > c")
    one = box.snapshot_directory("/w")
    box.mount_image("/w", one)
    ok(box, "cd /w && rm b && echo 2 > c && rm -r d && mkdir d && echo 2 > d/z")
    two = box.snapshot_directory("/w")
    other = sandbox()
    other.mount_image("/one", one)
    other.mount_image("/two", two)
    seen = ok(other, "cd /one && grep -r . . | sort; echo; cd /two && grep -r . . | sort")
    box.terminate()
    other.terminate()
    return seen


def built_image_is_mounted():
    """Any image will do; it need not be one that could run."""
    built = (
        modal.Image.debian_slim().run_commands("mkdir /tools && echo tool > /tools/t").build(app)
    )
    box = sandbox()
    box.mount_image("/img", built)
    seen = ok(box, "cat /img/tools/t && test -x /img/usr/bin/env && echo yes")
    inside = box.snapshot_directory("/img/tools")
    box.mount_image("/only", inside)
    seen += ok(box, "ls /only")
    box.terminate()
    return seen


def directory_as_root():
    """The image of a directory can be a sandbox's own."""
    box = sandbox()
    box.mount_image("/system", modal.Image.debian_slim().build(app))
    ok(box, "echo made > /system/made")
    system = box.snapshot_directory("/system")
    box.terminate()
    other = modal.Sandbox.create("cat", "/made", app=app, image=system)
    other.wait()
    return [other.returncode, other.stdout.read()]


def in_use():
    """An image that a program uses stays until it does not."""
    box = sandbox()
    box.mount_image("/busy", modal.Image.from_scratch())
    holder = box.exec("sh", "-c", "cd /busy && echo in && cat")
    first = next(iter(holder.stdout))
    refused = raised(lambda: box.unmount_image("/busy"))
    holder.stdin.write_eof()
    holder.stdin.drain()
    holder.wait()
    box.unmount_image("/busy")
    gone = raised(lambda: box.unmount_image("/busy"))
    box.terminate()
    return [first, refused[0], "in use" in refused[1], gone[0], "no image is mounted" in gone[1]]


def links_lead_nowhere_else():
    """A link in the place of a directory is followed within the sandbox, and only there."""
    box = sandbox()
    ok(box, "ln -s ../../../../../../real /link && mkdir /real")
    box.mount_image("/link", modal.Image.from_scratch())
    ok(box, "echo x > /real/x")
    seen = ok(box, "ls /link/ /real")
    ok(box, "rm /link && ln -s /proc/sys /link")
    box.unmount_image("/link")
    after = ok(
        box, "ls -A /real; echo 1 2>/dev/null > /proc/sys/kernel/core_pattern || echo closed"
    )
    box.terminate()
    return [seen, after]


def bad_places():
    box = sandbox()
    empty = modal.Image.from_scratch()
    found = [
        raised(lambda: box.mount_image("/", empty))[0],
        raised(lambda: box.mount_image("/proc/x", empty))[0],
        raised(lambda: box.mount_image("/etc/passwd", empty))[0],
        raised(lambda: box.mount_image("/x", modal.Image.from_id("im-" + "0" * 22)))[0],
        raised(lambda: box.snapshot_directory("/none"))[0],
        raised(lambda: box.snapshot_directory("/etc/passwd"))[0],
        raised(lambda: box.snapshot_directory("/proc"))[0],
        raised(lambda: box.snapshot_directory("relative"))[0],
    ]
    still = ok(box, "echo works")
    box.terminate()
    return [found, still]


def volume_is_reloaded():
    volume = modal.Volume.from_name(NAME, create_if_missing=True)
    reader = sandbox(volumes={"/data": volume})
    before = ok(reader, "ls /data")
    writer = sandbox(volumes={"/data": volume})
    ok(writer, "echo news > /data/news && sync")
    writer.terminate()
    writer.wait(raise_on_termination=False)
    reader.reload_volumes()
    after = ok(reader, "cat /data/news")
    refused = None
    if hasattr(reader, "snapshot_directory"):
        refused = raised(lambda: reader.snapshot_directory("/data"))[0]
    reader.terminate()
    return [before, after, refused]


def exit_snapshot():
    """Whatever ends a sandbox, its files are kept if that was asked for."""
    found = []
    volume = modal.Volume.from_name(NAME + "-kept", create_if_missing=True)
    for end in ("exits", "terminated", "times out"):
        box = modal.Sandbox.create(
            *(
                "sh",
                "-c",
                "mkdir /made && echo $0 > /made/f && rm /etc/issue && "
                + ("true" if end == "exits" else "sleep 600"),
                end,
            ),
            app=app,
            image=image,
            timeout=4 if end == "times out" else 300,
            volumes={"/data": volume},
            experimental_options={"enable_exit_snapshot": True},
        )
        if end == "terminated":
            until(lambda: box.exec("test", "-e", "/made/f").wait() == 0)  # noqa: B023
            found.append(raised(lambda: box._experimental_get_exit_snapshot(timeout=0.2))[0])  # noqa: B023
            box.terminate()
        kept = box._experimental_get_exit_snapshot(timeout=60)
        again = modal.Sandbox.create(
            "sh", "-c", "cat /made/f; ls /etc/issue /data 2>/dev/null", app=app, image=kept
        )
        again.wait()
        found.append(again.stdout.read())
    return found


def no_exit_snapshot():
    box = sandbox()
    box.terminate()
    return raised(lambda: box._experimental_get_exit_snapshot(timeout=10))[0]


def persistent():
    """It goes on where it was, through pauses, with its files."""
    box = modal.Sandbox.create(
        "sleep",
        "1000",
        app=app,
        image=image,
        timeout=None,
        secrets=[modal.Secret.from_name(NAME)],
        _experimental_persistent=True,
    )
    first = box.object_id
    seen = [ok(box, "echo one > /one; echo $WORD; hostname > /dev/null")]
    box._experimental_pause()
    box._experimental_resume()
    seen.append(ok(box, "cat /one; echo two > /two; echo $WORD"))
    box._experimental_pause()
    seen.append(ok(box, "cat /one /two"))  # a use resumes it
    seen.append(box.object_id == first)
    seen.append(box.poll())
    box.terminate()
    seen.append(raised(lambda: box.exec("true").wait())[0] != "nothing")
    seen.append(raised(lambda: box._experimental_resume())[0])
    return seen


def usage():
    """What a sandbox used, while it runs and afterwards."""
    from datetime import datetime, timedelta

    box = sandbox(cpu=0.5, memory=256)
    ok(
        box,
        "python -c 'import time; b = bytearray(100_000_000); t = time.process_time()\nwhile time.process_time() < t + 0.5: pass'",
    )
    running = box._experimental_stats()
    box.terminate()
    box.wait(raise_on_termination=False)
    ended = box._experimental_stats()
    later = box._experimental_stats(since=datetime.now(UTC) + timedelta(hours=1))
    cpu = "CPU Usage (cores)"
    return [
        running.duration > timedelta(0),
        sorted(each.unit for each in running.percentile_stats.values()),
        running.percentile_stats[cpu].percentiles[0].value > 0,
        ended.duration >= running.duration,
        ended.billed_cpu_core_seconds >= 0.5,
        ended.billed_memory_gib_seconds > 0,
        ended.cost,
        [later.duration == timedelta(0), later.percentile_stats],
    ]


def costs():
    """An app's sandboxes by their tags: what they cost where nothing has a price."""
    from datetime import datetime, timedelta

    mine = modal.App.lookup(f"{NAME}-costs", create_if_missing=True)
    for tags in ({"team": "a", "job": "1"}, {"team": "a", "job": "2"}, {"team": "b"}, {}):
        box = modal.Sandbox.create("true", app=mine, tags=tags)
        box.wait()
    running = modal.Sandbox.create("sleep", "100", app=mine, tags={"team": "runs"})
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    since = hour - timedelta(hours=1)
    stats = mine.sandboxes.stats
    try:
        return [
            [
                [
                    group.tags,
                    float(group.cost),
                    {k: float(v) for k, v in group.cost_by_resource.items()},
                ]
                for group in stats(since=since)
            ],
            sorted(str(group.tags["team"]) for group in stats(since=since, group_by_tags=["team"])),
            [g.tags for g in stats(since=since, group_by_tags=["job", "no"], tags={"team": "a"})],
            list(stats(since=since, tags={"team": "c"})),
            list(stats(since=since, until=hour)),
            raised(lambda: list(stats(since=since + timedelta(minutes=1)))),
            raised(lambda: list(stats(since=hour - timedelta(days=8)))),
        ]
    finally:
        running.terminate()


if __name__ == "__main__":
    report = Report()
    app = modal.App.lookup(NAME, create_if_missing=True)
    if hasattr(modal.Sandbox, "reload_volumes"):
        report.check("volume_is_reloaded", volume_is_reloaded)
    if (
        hasattr(modal.Sandbox, "unmount_image")
        and "ttl" in inspect.signature(modal.Sandbox.snapshot_directory).parameters
    ):
        for check in (
            directory_goes_to_another,
            mounted_over_files,
            steps_of_work,
            built_image_is_mounted,
            directory_as_root,
            in_use,
            links_lead_nowhere_else,
            bad_places,
        ):
            report.check(check.__name__, check, 60.0)
    if hasattr(modal.Sandbox, "_experimental_get_exit_snapshot"):
        report.check("exit_snapshot", exit_snapshot, 120.0)
        report.check("no_exit_snapshot", no_exit_snapshot)
    if "_experimental_persistent" in OPTIONS:
        modal.Secret.objects.create(NAME, {"WORD": "hidden"}, allow_existing=True)
        report.check("persistent", persistent, 120.0)
    if hasattr(modal.Sandbox, "_experimental_stats"):
        report.check("usage", usage)
    if hasattr(getattr(app, "sandboxes", None), "stats"):
        report.check("costs", costs)
