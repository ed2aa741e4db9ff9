"""Environment as an object (clients since 1.5), and the functions that older ones have for it."""

import datetime
import sys
import uuid

import modal
from reporting import Report

VERSION = tuple(int(part) for part in modal.__version__.split("."))
RUN = f"objects-{uuid.uuid4().hex[:8]}"
check = Report().check


def functions():
    from modal.environments import (
        create_environment,
        delete_environment,
        list_environments,
        update_environment,
    )

    name = f"{RUN}-f"
    create_environment(name)
    update_environment(name, new_name=f"{name}-2", new_web_suffix="suffix")
    found = {item.name: item.webhook_suffix for item in list_environments()}
    delete_environment(f"{name}-2")
    left = [item.name for item in list_environments()]
    return [name in found, found.get(f"{name}-2"), f"{name}-2" in left]


check("functions", functions)
if VERSION >= (1, 5):
    objects = modal.Environment.objects

    def created():
        objects.create(RUN)
        environment = modal.Environment.from_name(RUN).hydrate()
        again = modal.Environment.from_name(RUN, create_if_missing=True).hydrate()
        names = [item.name for item in objects.list()]
        kept = environment.object_id == again.object_id
        return [environment.name == RUN, environment.object_id[:3], kept, RUN in names]

    check("created", created)
    check("create_again", lambda: objects.create(RUN))
    check("bad_name", lambda: objects.create("no blanks"))
    check("missing", lambda: modal.Environment.from_name(f"{RUN}-missing").hydrate())
    check("context", lambda: modal.Environment.from_context().hydrate().name)

    def apps():
        modal.App.lookup(f"{RUN}-app", create_if_missing=True, environment_name=RUN)
        here = [app.name for app in modal.Environment.from_name(RUN).apps.list()]
        elsewhere = [app.name for app in modal.Environment.from_context().apps.list()]
        return [here == [f"{RUN}-app"], f"{RUN}-app" in elsewhere]

    if VERSION >= (1, 6):
        check("apps", apps)
    check("billing_summary", lambda: modal.Environment.from_name(RUN).billing.summary())
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    check("billing_report", lambda: modal.Environment.from_name(RUN).billing.report(start=day))
    roles = "roles" if VERSION >= (1, 6) else "members"

    def manager():
        return getattr(modal.Environment.from_name(RUN), roles)

    check("roles", lambda: manager().list())

    def unchanged():
        (owner,) = manager().list()["users"]
        manager().update(users={owner: "contributor"})
        return manager().list()["users"] == {owner: "contributor"}

    check("unchanged", unchanged)
    check("less", lambda: manager().update(users={next(iter(manager().list()["users"])): "viewer"}))
    check("nobody", lambda: manager().update(users={"somebody": "viewer"}))

    def deleted():
        modal.Dict.from_name("inside", environment_name=RUN, create_if_missing=True).hydrate()
        objects.delete(RUN)
        return RUN in [item.name for item in objects.list()]

    check("deleted", deleted)
    check("delete_missing", lambda: objects.delete(RUN))
    check("object_in_deleted", lambda: modal.Dict.from_name("inside", environment_name=RUN).len())
sys.exit(0)
