"""Images from registries (with skopeo) and from OCI layouts and archives on the node's disk."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import hmac
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from homeport.kernel.clock import Clock
from homeport.kernel.decoding import UNREADABLE
from homeport.link.messages import ImageConfig
from homeport.node.builder.errors import BuildError
from homeport.node.builder.flights import Emit
from homeport.node.builder.oci import Layout, LayoutImage, take_layers, unpack_archive
from homeport.node.builder.running import entry
from homeport.node.caches import REGISTRY, Caches, touch
from homeport.node.layers import LayerStore, layer_key, remove_tree

DOCKER_HUB = "docker.io"
_PULL_TIMEOUT_S = 3_600.0
_UNREACHABLE = re.compile(
    r"no such host|connection refused|i/o timeout|network is unreachable|"
    r"Temporary failure|no route to host|server misbehaving|TLS handshake timeout",
    re.IGNORECASE,
)
_LOCAL = ("oci:", "oci-archive:", "docker-archive:")
_AWS_ALGORITHM = "AWS4-HMAC-SHA256"


class RegistryUnreachableError(BuildError):
    """No registry answered (or there is no tool to ask one)."""


class PulledImage(msgspec.Struct, frozen=True):
    """An image that came from elsewhere, in the layer store."""

    layers: list[str]
    config: ImageConfig


class Access(msgspec.Struct, frozen=True):
    """How to sign in: ``kind`` as in ``BuildImage.registry_kind``; ``env`` has the credentials."""

    kind: str = ""
    env: Mapping[str, str] = {}


def is_local(reference: str) -> bool:
    """Whether ``reference`` names a file or folder of the node (``oci:/srv/image``)."""
    return reference.startswith(_LOCAL)


def canonical(reference: str) -> str:
    """``debian`` as ``docker.io/library/debian``: with its registry, as tools need it."""
    first, slash, rest = reference.partition("/")
    has_host = slash and ("." in first or ":" in first or first == "localhost")
    if has_host:
        return reference
    name = reference if slash else f"library/{reference}"
    return f"{DOCKER_HUB}/{name}" if not slash or rest else reference


def mirrored(reference: str, mirrors: Mapping[str, str]) -> str:
    """Where ``reference`` comes from: the longest entry of ``mirrors`` it starts with decides."""
    name = canonical(reference)
    for prefix in sorted(mirrors, key=len, reverse=True):
        if _covers(prefix, name):
            target = mirrors[prefix]
            return target if is_local(target) else target + name[len(_whole(prefix)) :]
    return name


def _whole(prefix: str) -> str:
    """An entry of the mirrors as names have it: ``python`` is ``docker.io/library/python``."""
    is_host = "/" not in prefix and ("." in prefix or ":" in prefix or prefix == "localhost")
    return prefix if is_host else canonical(prefix)


def _covers(prefix: str, name: str) -> bool:
    whole = _whole(prefix)
    return name == whole or name.startswith((whole + "/", whole + ":", whole + "@"))


class Registry:
    """Pulls images into ``layers``.

    Blobs of registries are ``kept``; what references led to is noted under ``directory``.
    """

    def __init__(
        self,
        layers: LayerStore,
        directory: Path,
        kept: Caches,
        clock: Clock,
        mirrors: Mapping[str, str] | None = None,
    ) -> None:
        self._layers = layers
        self._directory = directory
        self._kept = kept
        self._clock = clock
        self._mirrors = mirrors or {}
        self._silent_until: dict[str, float] = {}

    async def get(self, reference: str, access: Access, emit: Emit) -> PulledImage:
        """The image called ``reference``. Raises ``BuildError``; ``RegistryUnreachableError`` if
        nobody could be asked for it.
        """
        source = mirrored(reference, self._mirrors) if not is_local(reference) else reference
        if is_local(source):
            return await asyncio.to_thread(self._from_disk, source)
        record = self._directory / "references" / f"{layer_key(source)}.json"
        known = await asyncio.to_thread(self._known, record)
        if known is not None and "@sha256:" in source:
            return known
        try:
            async with self._kept.use(REGISTRY):
                return await self._pull(source, access, record, emit)
        except RegistryUnreachableError:
            if known is None:
                raise
            emit([entry(f"   {source} cannot be asked for; the copy of this node is used\n")])
            return known

    def has_mirror(self, reference: str) -> bool:
        """Whether settings say where ``reference`` comes from."""
        return any(_covers(prefix, canonical(reference)) for prefix in self._mirrors)

    def _known(self, record: Path) -> PulledImage | None:
        try:
            found = msgspec.json.decode(record.read_bytes(), type=PulledImage)
        except (FileNotFoundError, *UNREADABLE):
            return None
        return found if all(self._layers.has(key) for key in found.layers) else None

    # ── from disk ───────────────────────────────────────────────────────────────────────────

    def _from_disk(self, source: str) -> PulledImage:
        kind, _, rest = source.partition(":")
        path, _, name = rest.partition(":")
        if not path.startswith("/"):
            raise BuildError(f"{source} needs an absolute path on the node")
        if kind == "oci":
            return self._take(Layout(Path(path)).image(name), source)
        if kind != "oci-archive":
            raise BuildError(f"{source}: convert it with: skopeo copy {source} oci-archive:FILE")
        if not Path(path).is_file():
            raise BuildError(f"{path} does not exist on the node")
        work = self._layers.new_work()
        try:
            unpack_archive(Path(path), work / "layout")
            return self._take(Layout(work / "layout").image(name), source)
        finally:
            remove_tree(work)

    def _take(self, image: LayoutImage, what: str) -> PulledImage:
        for _, file in image.layers:
            touch(file)  # it is not read if its layer is here
        return PulledImage(take_layers(image, self._layers, what, self._clock.now()), image.config)

    # ── from a registry ─────────────────────────────────────────────────────────────────────

    async def _pull(self, source: str, access: Access, record: Path, emit: Emit) -> PulledImage:
        skopeo = shutil.which("skopeo")
        if skopeo is None:
            raise RegistryUnreachableError(
                f"{source} is in a registry: install skopeo on the node (apt-get install skopeo) to "
                "read it"
            )
        host = source.partition("/")[0]
        if self._silent_until.get(host, 0.0) > self._clock.monotonic():
            raise RegistryUnreachableError(
                f"the registry {host} cannot be reached: it did not answer a moment ago"
            )
        blobs = self._kept.directory(REGISTRY)
        work = self._layers.new_work()
        try:
            command = [skopeo, "--override-os=linux", "--override-arch=amd64", "copy", "--quiet"]
            command += ["--retry-times=2", "--dest-shared-blob-dir", str(blobs)]
            if host.startswith(("localhost:", "127.0.0.1:")):
                command.append("--src-tls-verify=false")
            command += await _authentication(source, access, work)
            command += [f"docker://{source}", f"oci:{work / 'layout'}:image"]
            emit([entry(f"=> Pulling {source}\n")])
            await self._run(command, source, host)
            image = await asyncio.to_thread(
                lambda: self._take(Layout(work / "layout", blobs).image("image"), source)
            )
            await asyncio.to_thread(_write, record, msgspec.json.encode(image))
            return image
        finally:
            await self._layers.discard(work)

    async def _run(self, command: list[str], source: str, host: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(_PULL_TIMEOUT_S):
                _, errors = await process.communicate()
        except TimeoutError:
            raise BuildError(f"{source} did not come within {_PULL_TIMEOUT_S:.0f} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return
        text = " ".join(errors.decode(errors="replace").split())
        found = re.findall(r'msg="((?:[^"\\]|\\.)*)"', text)
        reason = (found[-1] if found else text).replace('\\"', '"')[-600:]
        if _UNREACHABLE.search(reason):
            self._silent_until[host] = self._clock.monotonic() + _SILENT_S
            raise RegistryUnreachableError(f"the registry {host} cannot be reached: {reason}")
        raise BuildError(f"{source} could not be pulled: {reason}")


_SILENT_S = 300.0
"""A registry that did not answer is not asked again for so long."""


def _write(record: Path, data: bytes) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    temporary = record.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(record)


# ── signing in ──────────────────────────────────────────────────────────────────────────────────


async def _authentication(source: str, access: Access, work: Path) -> list[str]:
    """skopeo's arguments for it. Without credentials it reads the usual files of this user."""
    if not access.kind:
        return []
    user, password = await _user_and_password(source, access)
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    host = source.partition("/")[0]
    file = work / "auth.json"
    await asyncio.to_thread(_write_private, file, {"auths": {host: {"auth": token}}})
    return ["--src-authfile", str(file)]


def _write_private(file: Path, document: Any) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as opened:
        json.dump(document, opened)


async def _user_and_password(source: str, access: Access) -> tuple[str, str]:
    env = access.env
    if access.kind == "static":
        _need(env, "REGISTRY_USERNAME", "REGISTRY_PASSWORD")
        return env["REGISTRY_USERNAME"], env["REGISTRY_PASSWORD"]
    if access.kind == "gcp":
        _need(env, "SERVICE_ACCOUNT_JSON")
        return "_json_key", env["SERVICE_ACCOUNT_JSON"]
    if "AWS_ROLE_ARN" in env and "AWS_ACCESS_KEY_ID" not in env:
        raise BuildError(
            "signing in to ECR by AWS_ROLE_ARN needs an identity provider that this installation "
            "is not; use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    _need(env, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    return await _ecr_token(env)


def _need(env: Mapping[str, str], *names: str) -> None:
    missing = [name for name in names if not env.get(name)]
    if missing:
        raise BuildError(f"the registry's Secret lacks {', '.join(missing)}")


async def _ecr_token(env: Mapping[str, str]) -> tuple[str, str]:
    """A password of Amazon's registry, by its API (``GetAuthorizationToken``)."""
    region = env["AWS_REGION"]
    host = f"api.ecr.{region}.amazonaws.com"
    url = os.environ.get("AWS_ENDPOINT_URL_ECR") or f"https://{host}/"
    headers = sign_aws(env, host, region, "ecr", b"{}", datetime.datetime.now(datetime.UTC))
    try:
        async with (
            aiohttp.ClientSession(trust_env=True) as session,
            session.post(url, data=b"{}", headers=headers) as response,
        ):
            text = await response.text()
            status = response.status
    except aiohttp.ClientError as error:
        raise RegistryUnreachableError(f"{host} cannot be reached: {error}") from error
    if status != 200:
        raise BuildError(f"Amazon ECR refuses to sign in ({status}): {text[:300]}")
    token = json.loads(text)["authorizationData"][0]["authorizationToken"]
    user, _, password = base64.b64decode(token).decode().partition(":")
    return user, password


def sign_aws(
    env: Mapping[str, str],
    host: str,
    region: str,
    service: str,
    body: bytes,
    now: datetime.datetime,
) -> dict[str, str]:
    """Headers of a POST to an AWS JSON API, signed (version 4) with the keys in ``env``."""
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    headers = {
        "content-type": "application/x-amz-json-1.1",
        "host": host,
        "x-amz-date": stamp,
        "x-amz-target": "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
    }
    if env.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = env["AWS_SESSION_TOKEN"]
    names = sorted(headers)
    signed = ";".join(names)
    lines = "".join(f"{name}:{headers[name]}\n" for name in names)
    request = f"POST\n/\n\n{lines}\n{signed}\n{hashlib.sha256(body).hexdigest()}"
    scope = f"{day}/{region}/{service}/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"{_AWS_ALGORITHM}\n{stamp}\n{scope}\n{digest}"
    key = f"AWS4{env['AWS_SECRET_ACCESS_KEY']}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"{env['AWS_ACCESS_KEY_ID']}/{scope}"
    headers["authorization"] = (
        f"{_AWS_ALGORITHM} Credential={credential}, SignedHeaders={signed}, Signature={signature}"
    )
    return headers
