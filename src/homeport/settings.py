"""What an installation can be told, with defaults that need nothing.

Sources, weakest first: the defaults below, ``<home>/homeport.toml``, ``HOMEPORT_*`` environment
variables, command-line options.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from homeport.kernel.errors import InvalidError
from homeport.kernel.logs import Format, Level

DEFAULT_PORT = 7460
_MAPPINGS = frozenset({"registry_mirrors", "blob_store_options", "price_gpu_hour", "gpu_types"})


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one installation. Times in seconds, sizes in bytes unless the name says else."""

    home: Path
    """The folder that holds all state."""
    host: str = "127.0.0.1"
    """Address the server listens on."""
    port: int = DEFAULT_PORT
    workspace: str = "homeport"
    """Name shown to clients as the workspace."""
    durability: Literal["process", "power"] = "process"
    """What acknowledged data survives: the death of any process, or also power loss."""
    blob_store: str = ""
    """Bucket and prefix for everything large that clients store: ``s3://``, ``gs://`` or
    ``az://``; empty = the folder ``blobs`` of the home."""
    blob_store_options: dict[str, str] = {}
    """How the bucket is reached, such as ``endpoint`` and ``region``. As a variable:
    ``name=value,name=value``. Credentials may as well be in the environment under the vendor's
    names."""
    database_url: str = ""
    """``postgresql://USER:PASSWORD@HOST:PORT/NAME``; empty = the file ``homeport.db`` of the home."""
    standby: bool = False
    """With ``database_url``: ``homeport up`` waits while another server works on the database, and
    starts when that one ends, instead of giving up."""
    default_runtime: str = ""
    """Isolation tool of all containers; empty = bubblewrap."""
    sandbox_runtime: str = "auto"
    """Isolation tool of sandboxes: ``auto`` = runsc (gVisor) where it is installed and works, else
    ``default_runtime``, which those with a GPU have anyway; empty = ``default_runtime``."""
    message_bytes_max: int = 256 * 1024 * 1024
    """Largest gRPC message accepted."""
    heartbeat_s: float = 2.0
    """How often a node says it is alive; missing five of them counts as gone."""
    app_heartbeat_timeout_s: float = 60.0
    """An ephemeral app whose client is silent that long is stopped. Clients speak every 15 s and give
    an attempt 15 s: two in a row may get lost."""
    ephemeral_timeout_s: float = 900.0
    """An ephemeral Dict, Queue or Volume whose client is silent that long is deleted."""
    result_retention_s: float = 7 * 86400.0
    """How long results of ``spawn`` stay readable."""
    abandoned_call_s: float = 10.0
    """How long a generator goes on that its caller no longer reads (a lost connection may return)."""
    log_retention_s: float = 7 * 86400.0
    housekeeping_interval_s: float = 3600.0
    """How often what is beyond its retention is deleted, and content that nothing refers to."""
    inputs_pending_max: int = 200_000
    """Inputs waiting in one call before back-pressure (clients wait and retry)."""
    function_inputs_max: int = 500_000
    """Unfinished inputs of one function, of all its callers together; each takes about 1 KiB of the
    server's memory. Beyond it ``.remote()`` and ``.spawn()`` fail, maps wait."""
    disk_reserve_mb: int = 256
    """Work and content that is new is refused while the home's disk has less room than that, in MiB:
    it is for what runs already. 0 = never refused."""
    memory_reserve_mb: int = 128
    """The same for the memory of the server's machine."""
    caller_requests_per_s: int = 5000
    """Requests that one token, or one container, may make in the long run; more are refused, with word
    when to come back. 0 = any number."""
    queue_items_max: int = 2_000_000
    """Items waiting in all Queues together; each takes some 200 bytes of the server's memory."""
    default_milli_cpu: int = 50
    """CPU a container is counted with when its function asks for none: most of them idle most of
    the time, and a busy one may use what the others leave."""
    default_memory_mb: int = 128
    """Memory a container is counted with when its function asks for none."""
    sandbox_milli_cpu: int = 1
    """The same of a sandbox: it waits for its agent most of the time. Against others that compute
    it has the share of ``default_milli_cpu``."""
    sandbox_memory_mb: int = 10
    """The same: a sandbox whose program waits takes 4 to 8 MiB of the machine, kernel included. Those
    that need more should ask for it. Under gVisor 24 more are counted, for the kernel of its own."""
    price_core_hour: float = 0.0
    """What a core costs an hour, in the currency of whoever pays; shown by the statistics of
    sandboxes. 0 = nothing."""
    price_gib_hour: float = 0.0
    """What a GiB of memory costs an hour."""
    price_gpu_hour: dict[str, float] = {}
    """What a GPU costs an hour, by type. As a variable: ``type=price,type=price``."""
    default_memory_limit_mb: int = 0
    """Hard memory limit of such a container; 0 = half of the node's memory."""
    pids_max: int = 4096
    """Processes and threads in one container."""
    containers_max: int = 4000
    """Containers at once on one node, whatever they ask for."""
    registry_mirrors: dict[str, str] = {}
    """Where images come from, by registry, repository or image: ``docker.io`` → ``mirror:5000``,
    ``nvidia/cuda`` → ``oci:/srv/cuda``. As a variable: ``name=source,name=source``. A name that is
    mapped to itself is read from its registry even if it could be made here."""
    build_timeout_s: float = 7200.0
    """An image build that takes longer hangs (it waits for a terminal, or for a mirror) and is ended."""
    layers_bytes_max: int = 0
    """Image layers kept on a node; 0 = a third of the disk they are on. The least recently used
    ones that nothing needs go first."""
    caches_bytes_max: int = 0
    """What image builds keep on a node for later ones beside layers (packages of pip, uv and apt, blobs
    of registries, what ``ADD`` downloads, ``--mount=type=cache``); 0 = a tenth of the disk it is on. The
    least recently used goes first."""
    templates_max: int = 8
    """Containers a node keeps waiting, with the client imported, for tasks like those it ran lately;
    each takes some 40 MiB. 0 = none: every container starts from nothing."""
    sandboxes_prepared_max: int = 3
    """Sandboxes of gVisor (``sandbox_runtime``) that a node starts ahead of their creation, as many as
    were lately created at once; each takes some 30 MiB. None while no sandbox is created for some
    minutes. 0 = none ever."""
    gpu_cdi_folders: str = "/etc/cdi,/var/run/cdi"
    """Folders with CDI specifications (``nvidia-ctk cdi generate``), with commas between: how GPUs get
    into containers. Of a device in several, the last one counts. Empty = no GPU is offered."""
    gpu_types: dict[str, str] = {}
    """The type of a GPU, as programs ask for it, by its UUID, its number or its model's name:
    ``NVIDIA GeForce RTX 4090`` → ``A10``. As a variable: ``name=type,name=type``. Others have the
    type of their model."""
    web_domain: str = "localhost"
    """Domain of web functions: each has a name directly under it, which must lead to this machine
    (those under ``localhost`` always do)."""
    tls_certificate: str = ""
    """File with a certificate (PEM, with its chain) for the names web functions have here; renewed
    files are taken up by themselves. Empty = the installation's own authority vouches for them."""
    acme_directory: str = ""
    """Directory of an ACME authority that vouches for the names of web functions and ``web_domain``;
    empty = none."""
    acme_email: str = ""
    """Whom the authority may write to."""
    tls_key: str = ""
    """File with its key; empty = it is in the certificate's file."""
    web_wait_s: float = 150.0
    """A request of a web function without an answer by then is sent to wait again (303)."""
    router_listen: str = ""
    """Address the node's command router listens on (programs run in containers with ``exec``, and
    their files); empty = ``host``."""
    router_port: int = 0
    """Port of the command router; 0 = any. Clients are told."""
    router_host: str = ""
    """Host name under which clients reach the command router; empty = the one they use for the
    server. For a node on another machine than the server."""
    name_servers: str = ""
    """IPv4 addresses of the name servers that containers ask, with commas between; empty = those of
    the machine (``/etc/resolv.conf``)."""
    log_level: Level = "info"
    log_format: Format = "auto"
    """Of the server's and the node's log: for people (``console``), for programs (``json``);
    ``auto`` = the former on a terminal, the latter otherwise."""

    @property
    def database_path(self) -> Path:
        return self.home / "homeport.db"

    @property
    def blob_root(self) -> Path:
        return self.home / "blobs"

    @property
    def nfs_root(self) -> Path:
        return self.home / "nfs"

    @property
    def node_root(self) -> Path:
        return self.home / "node"

    @property
    def run_dir(self) -> Path:
        return self.home / "run"

    @property
    def log_dir(self) -> Path:
        return self.home / "logs"


def default_home(environ: Mapping[str, str] = os.environ) -> Path:
    """``$HOMEPORT_HOME`` or ``~/.homeport``."""
    return Path(environ.get("HOMEPORT_HOME") or Path.home() / ".homeport").absolute()


def load(
    home: Path | None = None, environ: Mapping[str, str] = os.environ, **overrides: Any
) -> Settings:
    """Read the settings of the installation in ``home``.

    Raises ``InvalidError`` naming the source and the field for values that do not fit.
    """
    home = (home or default_home(environ)).absolute()
    values: dict[str, Any] = {}
    file = home / "homeport.toml"
    if file.exists():
        try:
            values.update(tomllib.loads(file.read_text()))
        except tomllib.TOMLDecodeError as error:
            raise InvalidError(f"{file} is not valid TOML: {error}") from None
    for name in Settings.__struct_fields__:
        text = environ.get(f"HOMEPORT_{name.upper()}")
        if text is not None and name != "home":
            values[name] = _pairs(text) if name in _MAPPINGS else text
    values.update({name: value for name, value in overrides.items() if value is not None})
    unknown = sorted(set(values) - set(Settings.__struct_fields__))
    if unknown:
        raise InvalidError(f"unknown settings in {file}: {', '.join(unknown)}")
    values["home"] = str(home)
    try:
        return msgspec.convert(values, Settings, strict=False, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise InvalidError(f"a setting does not fit: {error}") from None


def _pairs(text: str) -> dict[str, str]:
    parts = [item.partition("=") for item in text.split(",") if item.strip()]
    return {name.strip(): value.strip() for name, _, value in parts}


def _decode(kind: type[Any], value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise TypeError(f"no way to read a {kind}")
