"""Every public method of Secret; a sandbox shows what containers are given."""

import os
import sys
import tempfile
import uuid
from pathlib import Path

import modal
from reporting import Report

VERSION = tuple(int(part) for part in modal.__version__.split("."))
RUN = uuid.uuid4().hex[:8]
report = Report()
check = report.check


def create(name, values, **options):
    if VERSION >= (1, 1, 2):
        modal.Secret.objects.create(name, values, **options)
    else:
        modal.Secret.create_deployed(name, values, **options)


def named(name, **options):
    return modal.Secret.from_name(name, **options).hydrate()


# ── named ones ──────────────────────────────────────────────────────────────────────────────────

kept = f"kept-{RUN}"


def created():
    create(kept, {"KEY": "first", "OTHER": "ä ö\n'\"$"})
    return [named(kept).object_id[:3], named(kept).object_id == named(kept).object_id]


check("created", created)
check("required", lambda: named(kept, required_keys=["KEY", "OTHER"]).object_id[:3])
check("required_missing", lambda: named(kept, required_keys=["KEY", "NO_ONE", "NO_TWO"]))
check("missing", lambda: named(f"missing-{RUN}"))
check("missing_environment", lambda: named(kept, environment_name="no-such-env"))
check("bad_name", lambda: create("no blanks", {"A": "1"}))
check("bad_key", lambda: create(f"bad-{RUN}", {"1A": "1"}))
check("bad_value", lambda: create(f"bad-{RUN}", {"A": "x" * 32_769}))
check("largest_value", lambda: create(f"large-{RUN}", {"A": "x" * 32_768}))
check("not_made", lambda: named(f"bad-{RUN}"))
if VERSION < (1, 3):
    check("lookup", lambda: modal.Secret.lookup(kept, required_keys=["KEY"]).object_id[:3])
if VERSION >= (1, 1, 2):
    objects = modal.Secret.objects
    check("create_again", lambda: create(kept, {"KEY": "second"}))

    def allow_existing():
        create(kept, {"NEW": "second"}, allow_existing=True)
        return named(kept, required_keys=["KEY", "OTHER"]).object_id[:3]

    check("allow_existing", allow_existing)

    def listed():
        names = [f"page-{RUN}-{number:03}" for number in range(102)]
        for name in names:
            create(name, {})
        found = [secret.name for secret in objects.list()]
        mine = [name for name in found if name in names]
        return [mine == names[::-1], kept in found, len(objects.list(max_objects=2))]

    check("listed", listed, 120.0)

    def deleted():
        create(f"gone-{RUN}", {"A": "1"})
        objects.delete(f"gone-{RUN}")
        objects.delete(f"gone-{RUN}", allow_missing=True)
        return "done"

    check("deleted", deleted)
    check("delete_missing", lambda: objects.delete(f"gone-{RUN}"))
else:

    def overwritten():
        before = named(kept).object_id
        modal.Secret.create_deployed(kept, {"KEY": "first", "NEW": "2"}, overwrite=True)
        named(kept, required_keys=["KEY", "NEW"])
        create(kept, {"KEY": "first", "OTHER": "ä ö\n'\"$"}, overwrite=True)
        return named(kept).object_id == before

    check("create_again", lambda: create(kept, {"KEY": "second"}))
    check("overwritten", overwritten)

if VERSION >= (1, 3, 5):

    def updated():
        name = f"updated-{RUN}"
        create(name, {"A": "1", "B": "2"})
        secret = named(name)
        secret.update({"B": "3", "C": "4"})
        again = named(name, required_keys=["A", "B", "C"])
        return [again.object_id == secret.object_id, shown([again], "A", "B", "C")]

    def update_deleted():
        name = f"later-gone-{RUN}"
        create(name, {"A": "1"})
        secret = named(name)
        objects.delete(name)
        secret.update({"A": "2"})


if VERSION >= (1, 2, 0):

    def info():
        about = named(kept).info()
        return [about.name == kept, about.created_at.timestamp() > 1.7e9, bool(about.created_by)]

    check("info", info)


# ── anonymous ones, and what a container gets ───────────────────────────────────────────────────

app = modal.App.lookup(f"secrets-{RUN}", create_if_missing=True)


def shown(secrets, *names):
    """The values of variables in a container that has these secrets."""
    command = "import os,sys; print([os.environ.get(name) for name in sys.argv[1:]])"
    sandbox = modal.Sandbox.create(
        "python", "-c", command, *names, app=app, secrets=secrets, timeout=100
    )
    sandbox.wait()
    return sandbox.stdout.read().strip() or sandbox.stderr.read()


def everything():
    os.environ["FROM_HERE"] = "from here"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, ".env").write_text("DOTTED=one\nQUOTED='two words'\nKEY=overridden\n")
        Path(folder, "other.env").write_text("OTHER_FILE=three\n")
        secrets = [
            named(kept),
            modal.Secret.from_dict({"PLAIN": "p", "NOTHING": None, "EMPTY": ""}),
            modal.Secret.from_local_environ(["FROM_HERE"]),
            modal.Secret.from_dotenv(folder),
            modal.Secret.from_dotenv(folder, filename="other.env"),
        ]
        names = ["KEY", "OTHER", "PLAIN", "NOTHING", "EMPTY", "FROM_HERE"]
        names += ["DOTTED", "QUOTED", "OTHER_FILE"]
        return shown(secrets, *names)


check("in_container", everything, 180.0)
check("not_in_environment", lambda: modal.Secret.from_local_environ(["NOT_THERE_AT_ALL"]))
check("not_strings", lambda: modal.Secret.from_dict({"A": 1}))
if VERSION >= (1, 3, 5):
    check("updated", updated, 120.0)
    check("update_deleted", update_deleted)
sys.exit(0)
