"""Buckets: what rclone is told, and what a node says that cannot mount them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from homeport.kernel.errors import InvalidError, UnavailableError
from homeport.link.messages import BucketRef
from homeport.node.buckets import Buckets, environment, running, seal, unseal
from homeport.node.leaks import find_leaks

KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}


def config(ref: BucketRef) -> dict[str, str]:
    prefix = "RCLONE_CONFIG_BUCKET_"
    found = environment(ref)
    return {key.removeprefix(prefix): found[key] for key in found if key.startswith(prefix)}


def test_keys_come_from_the_secret_and_from_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the node's own")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/ca.pem")
    monkeypatch.setenv("https_proxy", "http://proxy")
    anonymous = environment(BucketRef(path="/a", bucket="b"))
    assert "the node's own" not in anonymous.values()
    assert "AWS_CA_BUNDLE" not in anonymous
    assert anonymous["https_proxy"] == "http://proxy"
    assert config(BucketRef(path="/a", bucket="b"))["ENV_AUTH"] == "false"
    session = {**KEYS, "AWS_SESSION_TOKEN": "s", "AWS_REGION": "eu-1"}
    found = config(BucketRef(path="/a", bucket="b", credentials=session))
    assert found["ACCESS_KEY_ID"] == "id"
    assert (found["SESSION_TOKEN"], found["REGION"]) == ("s", "eu-1")
    assert (found["PROVIDER"], found["FORCE_PATH_STYLE"]) == ("AWS", "false")


def test_each_kind_of_store() -> None:
    r2 = BucketRef(path="/a", bucket="b", kind="r2", endpoint_url="https://x", credentials=KEYS)
    assert (config(r2)["PROVIDER"], config(r2)["ENDPOINT"]) == ("Cloudflare", "https://x")
    google = {"GOOGLE_ACCESS_KEY_ID": "g", "GOOGLE_ACCESS_KEY_SECRET": "s"}
    gcp = config(BucketRef(path="/a", bucket="b", kind="gcp", credentials=google))
    assert gcp["ENDPOINT"] == "https://storage.googleapis.com"
    assert gcp["ACCESS_KEY_ID"] == "g"
    own = config(BucketRef(path="/a", bucket="b", endpoint_url="http://minio", credentials=KEYS))
    assert (own["PROVIDER"], own["FORCE_PATH_STYLE"]) == ("Other", "true")
    with pytest.raises(InvalidError, match="GOOGLE_ACCESS_KEY_ID"):
        environment(BucketRef(path="/a", bucket="b", kind="gcp", credentials=KEYS))


def test_a_node_without_rclone_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    buckets = Buckets(tmp_path / "work", lambda: "token")
    with pytest.raises(UnavailableError, match="apt-get install rclone"):
        asyncio.run(buckets.mount([BucketRef(path="/a", bucket="b")], "ta-1"))
    assert not (tmp_path / "work").exists()


def test_credentials_on_the_disk_are_sealed_with_the_nodes_token() -> None:
    ref = BucketRef(path="/a", bucket="b", credentials=KEYS)
    sealed = seal(ref, "token")
    assert b"secret" not in sealed
    assert unseal(sealed, "token") == ref
    assert unseal(sealed, "another") is None
    assert unseal(sealed[:20], "token") is None


def test_an_upload_that_goes_on_is_seen(tmp_path: Path) -> None:
    folder = tmp_path / "node" / "buckets" / "ta-1.0"
    program = [sys.executable, "-c", "input()", "mount", "--cache-dir", str(folder / "cache")]
    with subprocess.Popen(program, stdin=subprocess.PIPE) as process:
        assert running(folder) == process.pid
        assert running(folder.with_name("ta-1")) == 0
        assert f"upload to a bucket by process {process.pid}" in find_leaks(tmp_path)
        assert find_leaks(tmp_path / "another") == []
        process.communicate(b"\n")
