"""CloudBucketMount against a local server that speaks S3."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.gate import Gate
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.s3 import ObjectStore
from tests.conformance.harness.server import Server

from homeport.node.buckets import running
from homeport.node.leaks import find_leaks

pytestmark = pytest.mark.skipif(
    not shutil.which("rclone"), reason="needs rclone: scripts/setup tests"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("s3")) as store:
        for bucket in ("first", "second"):
            store.create(bucket)
        store.put("first", "hello.txt", b"hello")
        store.put("first", "deep/er/one.txt", b"one")
        store.put("first", "large.bin", b"l" * (9 << 20))
        yield store


@pytest.fixture
def checks(runner: Runner, client: Client, store: ObjectStore) -> Checks:
    return runner.checks(client, "buckets", environ={"BUCKET_URL": store.url})


def test_reading_and_writing(checks: Checks, client: Client, store: ObjectStore) -> None:
    assert checks.value("work") == {
        "listed": ["deep", "hello.txt", "large.bin"],
        "read": "hello",
        "deep": "one",
        "large": 9 << 20,
        "secrets": [],
    }
    suffix = client.version.replace(".", "-")
    assert _until(store, "first", f"{suffix}/written.txt") == b"written inside"


def test_two_in_one_container(checks: Checks, client: Client, store: ObjectStore) -> None:
    assert checks.value("two") is not None
    assert _until(store, "second", f"{client.version.replace('.', '-')}.txt") == b"hello"


def test_read_only_by_prefix(checks: Checks) -> None:
    assert checks.value("read_only") == [["er"], "one", "EROFS"]


def test_sandboxes(checks: Checks) -> None:
    assert checks.value("in_a_sandbox") == [0, "hello"]


def test_what_a_dying_container_wrote_is_uploaded(
    checks: Checks, client: Client, store: ObjectStore
) -> None:
    checks.error("write_and_die")
    found = _until(store, "first", f"{client.version.replace('.', '-')}-last.bin")
    assert found == b"x" * (20 << 20)


def test_a_secret_without_keys_is_an_error_that_names_them(checks: Checks) -> None:
    assert "AWS_ACCESS_KEY_ID" in checks.error("without_keys")["message"]


@pytest.mark.newest
@pytest.mark.parametrize("end", ["node killed", "machine killed", "stopped"])
def test_what_was_not_uploaded_when_the_node_ended_is_before_anybody_reads_it(
    runner: Runner, client: Client, server: Server, store: ObjectStore, end: str
) -> None:
    prefix = end.replace(" ", "-")
    with Gate(store.url) as gate:
        gate.close()
        environ = {"BUCKET_URL": gate.url, "BUCKET_PREFIX": prefix}
        started = runner.start(client, "bucket_killed.py", environ=environ)
        started.wait_for(lambda output: "all is written" in output)
        gate.await_upload()
        assert store.get("first", f"{prefix}/large.bin") is None
        if end == "stopped":
            server.stop()
            assert not find_leaks(server.home)
            server.start()
        else:
            server.kill("node")
        if end == "machine killed":
            folders = list((server.home / "node" / "buckets").iterdir())
            found = [pid for folder in folders if (pid := running(folder))]
            assert found
            for pid in found:
                os.kill(pid, signal.SIGKILL)
        gate.tell()
        if end != "node killed":
            gate.await_upload()  # by the next node
        gate.open()
        checks = started.checks()
    assert checks.value("write") == ["deep", "large.bin"]
    assert checks.value("read") == [True, "small"]
    assert store.get("first", f"{prefix}/large.bin") == b"large" * (1 << 20)
    assert store.get("first", f"{prefix}/deep/small.txt") == b"small"


def _until(store: ObjectStore, bucket: str, key: str) -> bytes | None:
    """The object, when it comes: containers end after their answer."""
    for _ in range(600):
        if (found := store.get(bucket, key)) is not None:
            return found
        time.sleep(0.1)
    return None
