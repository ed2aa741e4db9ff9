"""Contents in a bucket instead of a folder: the same for every client, and said when it fails."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.harness.clients import Client
from tests.conformance.harness.gate import Gate
from tests.conformance.harness.programs import Checks, Runner
from tests.conformance.harness.s3 import SIGNED, ObjectStore
from tests.conformance.harness.server import Server, server_with

from homeport.storage.bucket import Bucket

BUCKET = "contents"
MIB = 1 << 20


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with ObjectStore(tmp_path_factory.mktemp("s3")) as store:
        store.create(BUCKET)
        yield store


def settings_of(url: str, bucket: str = BUCKET) -> dict[str, str]:
    return {
        "HOMEPORT_BLOB_STORE": f"s3://{bucket}/homeport",
        "HOMEPORT_BLOB_STORE_OPTIONS": f"endpoint={url},region=us-east-1",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
    }


@pytest.fixture(scope="module")
def server(store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server_with(tmp_path_factory.mktemp("in-a-bucket"), settings_of(store.url)) as server:
        yield server


@pytest.fixture(scope="module")
def runner(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(server, tmp_path_factory.mktemp("clients"))


@pytest.fixture
def checks(runner: Runner, client: Client) -> Checks:
    return runner.checks(client, "object_store")


def stored(store: ObjectStore) -> dict[str, int]:
    options = {"endpoint": store.url, "region": "us-east-1"}
    keys = {"access_key_id": "key", "secret_access_key": "secret"}
    return Bucket(f"s3://{BUCKET}/homeport", {**options, **keys}).sizes()


def content_name(client: Client, name: str, size: int) -> str:
    suffix = client.version.replace(".", "-")
    data = hashlib.shake_256(f"{name} {suffix}".encode()).digest(size)
    digest = hashlib.sha256(data).hexdigest()
    return f"{digest[:2]}/{digest}"


def test_inputs_and_outputs_that_are_large(checks: Checks) -> None:
    assert checks.value("large") == [True, True]
    assert checks.value("mapped") == [True] * 4


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_volumes(checks: Checks, version: str) -> None:
    assert checks.value(f"{version}_upload") == [
        ["empty", 0],
        ["large.bin", 19 * MIB + 3],
        ["small.txt", 500],
        ["zeros.bin", 10 * MIB + 3],
    ]
    assert all(checks.value(f"{version}_read").values())
    assert checks.value(f"{version}_inside") == [True, True]


def test_dicts(checks: Checks) -> None:
    assert checks.value("dict") is True


def test_all_of_it_is_in_the_bucket(
    checks: Checks, client: Client, server: Server, store: ObjectStore
) -> None:
    assert checks.value("dict") is True
    names = stored(store)
    assert names[content_name(client, "large v1", 19 * MIB + 3)] == 19 * MIB + 3
    assert names[content_name(client, "small v2", 500)] == 500
    blobs = server.home / "blobs"
    assert not [path for path in blobs.rglob("*") if path.is_file()]


def test_fsck_and_doctor_look_there(checks: Checks, server: Server, client: Client) -> None:
    assert checks.value("v2_upload")
    done = server.homeport("volume", "fsck", "--json", timeout_s=120)
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["damages"] == []
    found = json.loads(server.homeport("doctor", "--json").stdout)
    assert [check["state"] for check in found if check["name"] == "object store"] == ["ok"]


@pytest.mark.newest
def test_the_store_of_google_by_its_own_protocol(
    store: ObjectStore, client: Client, tmp_path: Path
) -> None:
    """What is used of GCS (its XML API) a server of S3 answers too; only credentials differ."""
    store.create("google")
    with Gate(store.url, authorization=SIGNED) as gate:
        account = {"gcs_base_url": gate.url, "disable_oauth": True}
        keys = {"client_email": "", "private_key": "", "private_key_id": ""}
        home = tmp_path / "home"
        home.mkdir()
        (home / "homeport.toml").write_text(
            'blob_store = "gs://google/homeport"\n[blob_store_options]\n'
            f"service_account_key = '{json.dumps({**account, **keys})}'\n"
        )
        with server_with(home, {}) as server:
            checks = Runner(server, tmp_path).checks(client, "object_store")
            assert checks.value("large") == [True, True]
            for version in ("v1", "v2"):
                assert all(checks.value(f"{version}_read").values())
                assert checks.value(f"{version}_inside") == [True, True]
            assert checks.value("dict") is True
            done = server.homeport("volume", "fsck", "--json", timeout_s=120)
            assert json.loads(done.stdout)["damages"] == [], done.stderr
            looked = server.homeport("doctor", "--json", timeout_s=120)
            assert looked.returncode == 0, looked.stdout + looked.stderr
            found = json.loads(looked.stdout)
            assert [check["state"] for check in found if check["name"] == "object store"] == ["ok"]
            assert not [path for path in (home / "blobs").rglob("*") if path.is_file()]
    options = {"endpoint": store.url, "region": "us-east-1"}
    there = Bucket(
        "s3://google/homeport", {**options, "access_key_id": "k", "secret_access_key": "s"}
    )
    assert max(there.sizes().values()) > 18 * MIB


def up(home: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "homeport.cli.main", "up", "--home", str(home), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environ},
    )


def test_a_bucket_that_is_not_there_is_said_at_the_start(
    store: ObjectStore, tmp_path: Path
) -> None:
    done = up(tmp_path, settings_of(store.url, "no-such-bucket"))
    assert done.returncode != 0
    assert "there is no bucket for s3://no-such-bucket/homeport" in done.stdout + done.stderr
