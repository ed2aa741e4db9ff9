"""What finds or makes objects by other names than `from_name`: old clients' ways, dashboards."""

import io
import sys
import uuid

import modal
from reporting import Report

VERSION = tuple(int(part) for part in modal.__version__.split("."))
RUN = uuid.uuid4().hex[:8]
KINDS = {"dict": modal.Dict, "queue": modal.Queue, "volume": modal.Volume}
check = Report().check


def looked_up(kind, name):
    one = kind.lookup(name, create_if_missing=True)
    return [one.object_id == kind.lookup(name).object_id, one.object_id[:3]]


def dashboard(kind, name):
    one = kind.from_name(name, create_if_missing=True).hydrate()
    return one.object_id in one.get_dashboard_url()


for name, kind in KINDS.items():
    if hasattr(kind, "lookup"):
        check(f"{name}_lookup", lambda kind=kind, name=name: looked_up(kind, f"{name}-{RUN}"))
        check(f"{name}_lookup_missing", lambda kind=kind: kind.lookup(f"missing-{RUN}"))
    if hasattr(kind, "get_dashboard_url"):
        check(f"{name}_dashboard", lambda kind=kind, name=name: dashboard(kind, f"{name}-{RUN}"))

shared = modal.NetworkFileSystem
if hasattr(shared, "lookup"):
    check("nfs_lookup", lambda: looked_up(shared, f"nfs-{RUN}"))


def made_for_good():
    name = f"made-{RUN}"
    made = shared.create_deployed(name)
    system = shared.from_name(name).hydrate()
    system.write_file("one", io.BytesIO(b"1"))
    content = b"".join(system.read_file("one")).decode()
    shared.delete(name)
    return [made == system.object_id, content]


check("nfs_created", made_for_good)
check("nfs_gone", lambda: shared.from_name(f"made-{RUN}").hydrate())
if VERSION < (1, 4):  # later ones have it, but it ends in an error of their own

    def volume_created():
        made = modal.Volume.create_deployed(f"made-{RUN}")
        return made == modal.Volume.from_name(f"made-{RUN}").hydrate().object_id

    check("volume_created", volume_created)
    check("volume_created_again", lambda: modal.Volume.create_deployed(f"made-{RUN}"))
check("key_too_long", lambda: modal.Queue.validate_partition_key("k" * 65))
check("key_empty", lambda: modal.Queue.validate_partition_key(""))
check("key", lambda: modal.Queue.validate_partition_key("k" * 64).decode())
sys.exit(0)
