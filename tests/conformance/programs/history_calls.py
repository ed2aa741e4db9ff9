"""Calls the deployed app in every way that ends otherwise; ``history`` methods of the client."""

import datetime
import sys
import time

import modal


def main(name):
    from reporting import Report

    report = Report()
    check, note = report.check, report.note

    def function(tag):
        return modal.Function.from_name(name, tag)

    note("began", time.time())
    calls = [function("sleep").spawn(600) for _ in range(2)]
    note("sleeping", [call.object_id for call in calls])
    failing, lingering = (function(tag).spawn() for tag in ("fail", "linger"))
    check("once", lambda: function("double").remote(1))
    check("map", lambda: list(function("double").map(range(20))))
    check("spawn", lambda: [function("double").spawn(3).get(timeout=60) for _ in range(3)])
    greeter = modal.Cls.from_name(name, "Greeter")
    check("greet", lambda: [greeter(name=each).hello.remote() for each in ("a", "b", "b")])
    check("fail", lambda: failing.get(timeout=60))
    check("linger", lambda: lingering.get(timeout=60))
    # So long until a call can be told from those before, to the second.
    time.sleep(1.1)
    note("ended", time.time())
    if hasattr(modal.Function, "stats"):
        methods(check, name)


def methods(check, name):
    """What clients since 1.6.4 can ask by themselves."""
    now = datetime.datetime.now(datetime.UTC)
    double = modal.Function.from_name(name, "double")

    def function_stats():
        found = double.stats()
        (container,) = {found.container_total_count}
        return [
            found.input_success_count,
            found.input_failure_count,
            container,
            sorted(found.input_percentile_stats),
            [
                each.percentile
                for each in found.container_percentile_stats["Startup time (s)"].percentiles
            ],
        ]

    check("function_stats", function_stats)
    week = datetime.timedelta(days=7, seconds=1)
    check("long_range", lambda: double.stats(since=now - week, until=now))
    check("no_container", lambda: double.stats(container="ta-00000000000000000000000000"))

    def app_stats():
        found = modal.App.lookup(name).stats()
        return {
            "calls": {
                tag: [each.counts.calls.total, each.counts.calls.failed]
                for tag, each in found.functions.items()
            },
            "total": found.functions.total.calls.total,
            "servers": sorted(found.servers),
            "deployments": found.deployment_count,
            "state": found.lifecycle.state.value,
            "sandboxes": [found.sandboxes.total, found.sandboxes.live],
        }

    check("app_stats", app_stats)

    def sandbox_counts():
        app = modal.App.lookup(name)
        gone = modal.Sandbox.create("true", app=app)
        gone.wait()
        stays = modal.Sandbox.create("sleep", "600", app=app)
        found = app.stats().sandboxes
        stays.terminate()
        return [found.total, found.finished, found.live]

    check("sandbox_counts", sandbox_counts, timeout=120)
    other = f"{name}-other"
    modal.App.lookup(other, create_if_missing=True)
    look_around = modal.Function.from_name(name, "look_around")
    check("look_around", lambda: look_around.remote(name, other), timeout=120)


if __name__ == "__main__":
    main(sys.argv[1])
