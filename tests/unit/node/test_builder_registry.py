"""Images from OCI layouts, archives and registries; layers packed and unpacked."""

from __future__ import annotations

import asyncio
import base64
import datetime
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from homeport.kernel.clock import SystemClock
from homeport.link.messages import ImageConfig, LogEntry
from homeport.node.builder import BuildError, archives
from homeport.node.builder.oci import Layout, LayoutWriter, write_archive
from homeport.node.builder.registry import (
    Access,
    PulledImage,
    Registry,
    RegistryUnreachableError,
    canonical,
    mirrored,
    sign_aws,
)
from homeport.node.caches import Caches
from homeport.node.layers import LayerStore

from .builder_harness import Workshop

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")
CONFIG = ImageConfig(
    env={"A": "1"},
    workdir="/w",
    user="u",
    cmd=["c"],
    labels={"l": "m"},
    ports=["80/tcp"],
    healthcheck=["NONE"],
    onbuild=["RUN x"],
)


def trees(path: Path) -> list[Path]:
    """Two layers with everything that a layer can hold."""
    low, high = path / "low", path / "high"
    (low / "etc").mkdir(parents=True)
    (low / "etc/gone").write_text("gone")
    (low / "etc/kept").write_text("kept")
    (low / "bin").mkdir()
    (low / "bin/tool").write_text("tool")
    (low / "bin/tool").chmod(0o4755)
    os.link(low / "bin/tool", low / "bin/same")
    (low / "bin/link").symlink_to("/bin/tool")
    (low / "tmp").mkdir()
    (low / "tmp").chmod(0o1777)
    os.chown(low / "etc/kept", 1000, 1001)
    (high / "etc").mkdir(parents=True)
    os.mknod(high / "etc/gone", stat.S_IFCHR, 0)
    (high / "opaque").mkdir()
    os.setxattr(high / "opaque", "user.overlay.opaque", b"y")
    (high / "opaque/new").write_text("new")
    return [low, high]


def check_trees(low: Path, high: Path) -> None:
    assert (low / "bin/tool").lstat().st_mode & 0o7777 == 0o4755
    assert (low / "bin/tool").stat().st_ino == (low / "bin/same").stat().st_ino
    assert os.readlink(low / "bin/link") == "/bin/tool"
    assert (low / "tmp").lstat().st_mode & 0o7777 == 0o1777
    kept = (low / "etc/kept").lstat()
    assert (kept.st_uid, kept.st_gid) == (1000, 1001)
    gone = (high / "etc/gone").lstat()
    assert stat.S_ISCHR(gone.st_mode)
    assert gone.st_rdev == 0
    assert os.getxattr(high / "opaque", "user.overlay.opaque") == b"y"
    assert (high / "opaque/new").read_text() == "new"


def packed(path: Path) -> Path:
    """An OCI archive of those layers, called ``v1``."""
    file = path / "image.tar"
    layers = [(f"key{n}", tree) for n, tree in enumerate(trees(path / "trees"))]
    write_archive(file, "v1", layers, CONFIG, b"records", path / "work")
    return file


def registry(path: Path, **mirrors: str) -> Registry:
    store = LayerStore(path / "layers")
    kept = Caches(path / "builder", 2**40)
    return Registry(store, path / "registry", kept, SystemClock(), mirrors)


def get(source: Registry, name: str, access: Access | None = None) -> PulledImage:
    said: list[LogEntry] = []
    return asyncio.run(source.get(name, access or Access(), said.extend))


def test_an_archive_is_the_same_image_again(tmp_path: Path) -> None:
    file = packed(tmp_path)
    found = get(registry(tmp_path), f"oci-archive:{file}:v1")
    assert found == PulledImage(["key0", "key1"], CONFIG)
    check_trees(*(tmp_path / "layers" / key for key in found.layers))
    with pytest.raises(BuildError, match="no image v2"):
        get(registry(tmp_path), f"oci-archive:{file}:v2")


def test_a_layer_is_packed_the_same_each_time(tmp_path: Path) -> None:
    for number in (1, 2):
        writer = LayoutWriter(tmp_path / str(number))
        for tree in trees(tmp_path / f"trees{number}"):
            for path in [tree, *tree.rglob("*")]:
                os.utime(path, (0, 0), follow_symlinks=False)
            writer.add_layer("key", tree)
        writer.finish("x", CONFIG, b"")
    names = [sorted(p.name for p in (tmp_path / n / "blobs/sha256").iterdir()) for n in "12"]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("name", "text"),
    [("index.json", "{"), ("index.json", '{"manifests": [{"digest": "sha256:../x"}]}')],
)
def test_a_damaged_layout_says_so(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BuildError, match=r"not an OCI image layout|not a digest"):
        Layout(tmp_path).image()


def test_a_layer_cannot_write_outside(tmp_path: Path) -> None:
    import io
    import tarfile

    for name, kind in (("../x", tarfile.REGTYPE), ("a/.wh.x", tarfile.REGTYPE)):
        file = tmp_path / "layer.tar"
        with tarfile.open(file, "w") as tar:
            link = tarfile.TarInfo("a")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
            tar.addfile(link)
            member = tarfile.TarInfo(name)
            member.type = kind
            tar.addfile(member, io.BytesIO())
        with pytest.raises(BuildError, match="cannot be unpacked"):
            archives.untar(file, tmp_path / "target", layer=True)
        shutil.rmtree(tmp_path / "target", ignore_errors=True)
        assert not (tmp_path / "x").exists()


def test_from_an_archive_in_a_dockerfile(tmp_path: Path) -> None:
    file = packed(tmp_path)

    async def main() -> None:
        shop = Workshop(tmp_path / "home")
        outcome = await shop.build(f"FROM oci-archive:{file}\nENV B=2\n")
        assert outcome.layers[:2] == ["key0", "key1"]
        assert outcome.config.env == {"A": "1", "B": "2"}
        assert shop.runtime.scripts == ["x"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "mirrors", "expected"),
    [
        ("debian", {}, "docker.io/library/debian"),
        ("me/x:1", {}, "docker.io/me/x:1"),
        ("localhost:5000/x", {}, "localhost:5000/x"),
        ("debian:12", {"docker.io": "m:5000"}, "m:5000/library/debian:12"),
        ("nvidia/cuda:12", {"nvidia/cuda": "oci:/srv/c", "docker.io": "m"}, "oci:/srv/c"),
        ("python:3.11", {"python": "r.example/py"}, "r.example/py:3.11"),
        ("pythonic:3", {"python": "r.example/py"}, "docker.io/library/pythonic:3"),
    ],
)
def test_where_names_lead(name: str, mirrors: dict[str, str], expected: str) -> None:
    assert mirrored(name, mirrors) == expected


def test_names_with_a_registry_are_left_alone() -> None:
    assert canonical("ghcr.io/astral-sh/uv:0.9") == "ghcr.io/astral-sh/uv:0.9"


def test_requests_to_aws_are_signed() -> None:
    env = {"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "secret"}
    when = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    host = "api.ecr.eu-west-1.amazonaws.com"
    one = sign_aws(env, host, "eu-west-1", "ecr", b"{}", when)
    assert one["x-amz-date"] == "20260102T030405Z"
    assert one["authorization"].startswith(
        "AWS4-HMAC-SHA256 Credential=AKID/20260102/eu-west-1/ecr/aws4_request, SignedHeaders="
        "content-type;host;x-amz-date;x-amz-target, Signature="
    )
    assert one == sign_aws(env, host, "eu-west-1", "ecr", b"{}", when)
    # as botocore signs the same request
    temporary = {**env, "AWS_SECRET_ACCESS_KEY": "se/cr+et", "AWS_SESSION_TOKEN": "tok=="}
    noon = datetime.datetime(2026, 11, 27, 12, tzinfo=datetime.UTC)
    assert sign_aws(temporary, host, "eu-west-1", "ecr", b"{}", noon)["authorization"] == (
        "AWS4-HMAC-SHA256 Credential=AKID/20261127/eu-west-1/ecr/aws4_request, SignedHeaders="
        "content-type;host;x-amz-date;x-amz-security-token;x-amz-target, "
        "Signature=593eee9d663f66fb5dcefdbf98b1c8fc4df7f6aa2e52cd915d42f68078fa4f10"
    )
    other = sign_aws({**env, "AWS_SECRET_ACCESS_KEY": "x"}, host, "eu-west-1", "ecr", b"{}", when)
    assert other["authorization"] != one["authorization"]


# ── a registry ──────────────────────────────────────────────────────────────────────────────────


class _Handler(BaseHTTPRequestHandler):
    """Serves one layout as ``/v2/<any name>``, to whoever knows the password (if there is one)."""

    layout: ClassVar[Path]
    password: ClassVar[str] = ""
    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        token = base64.b64encode(f"me:{self.password}".encode()).decode()
        if self.password and self.headers.get("Authorization") != f"Basic {token}":
            self._answer(401, b"", {"WWW-Authenticate": 'Basic realm="x"'})
        elif self.path == "/v2/":
            self._answer(200, b"{}", {})
        else:
            self._content(self.path.rsplit("/", 1)[-1])

    def _content(self, name: str) -> None:
        import json

        index = json.loads((self.layout / "index.json").read_text())["manifests"][0]
        digest = name if name.startswith("sha256:") else index["digest"]
        file = self.layout / "blobs" / digest.replace(":", "/")
        if not file.exists():
            self._answer(404, b"", {})
            return
        kind = index["mediaType"] if digest == index["digest"] else "application/octet-stream"
        headers = {"Content-Type": kind, "Docker-Content-Digest": digest}
        self._answer(200, file.read_bytes(), headers)

    def _answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """host:port of a registry that has one image under every name."""
    writer = LayoutWriter(tmp_path / "layout")
    for tree in trees(tmp_path / "made"):
        writer.add_layer("", tree)
    writer.finish("v1", CONFIG, b"")
    _Handler.layout, _Handler.password, _Handler.asked = tmp_path / "layout", "", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@needs_skopeo
def test_an_image_is_pulled_once(tmp_path: Path, address: str) -> None:
    source = registry(tmp_path, **{"quay.io/x": f"{address}/y"})
    found = get(source, "quay.io/x/img:v1")
    assert found.config == CONFIG
    check_trees(*(tmp_path / "layers" / key for key in found.layers))
    blobs = [path for path in _Handler.asked if "/blobs/" in path]
    assert len(blobs) == 3
    assert get(source, "quay.io/x/img:v1") == found
    again = [path for path in _Handler.asked if "/blobs/" in path]
    assert len(again) <= len(blobs) + 1  # no layer came twice


@needs_skopeo
def test_credentials_of_a_secret_open_a_registry(tmp_path: Path, address: str) -> None:
    _Handler.password = "hush"
    with pytest.raises(BuildError, match=r"unauthorized|authentication|401"):
        get(registry(tmp_path), f"{address}/img:v1")
    env = {"REGISTRY_USERNAME": "me", "REGISTRY_PASSWORD": "hush"}
    assert get(registry(tmp_path), f"{address}/img:v1", Access("static", env)).config == CONFIG
    with pytest.raises(BuildError, match="lacks REGISTRY_PASSWORD"):
        get(registry(tmp_path), f"{address}/img:v1", Access("static", {"REGISTRY_USERNAME": "me"}))
    left = list((tmp_path / "layers").rglob("auth.json"))
    assert left == []


@needs_skopeo
def test_a_registry_that_is_gone_leaves_what_was_pulled(tmp_path: Path) -> None:
    source = registry(tmp_path)
    with pytest.raises(RegistryUnreachableError, match="cannot be reached"):
        get(source, "127.0.0.1:1/img:v1")
    with pytest.raises(RegistryUnreachableError, match="did not answer"):
        get(source, "127.0.0.1:1/other:v1")


def test_what_is_missing_on_disk_is_said(tmp_path: Path) -> None:
    source = registry(tmp_path)
    for name, words in (
        ("oci:relative", "absolute path"),
        ("oci:/none", "not an OCI image layout"),
        ("oci-archive:/none.tar", "does not exist"),
        ("docker-archive:/x.tar", "skopeo copy"),
    ):
        with pytest.raises(BuildError, match=words):
            get(source, name)
