"""How the host reaches package indexes: carried into builds so that they work where it works."""

from __future__ import annotations

import configparser
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from homeport.node.builder.merged import MergedView

IMAGE_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_HOST_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_HOST_PUBLIC_CAS = Path("/usr/share/ca-certificates")
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_CA_VARIABLES = (
    "PIP_CERT",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
)
_PLAIN = (
    "PIP_DEFAULT_TIMEOUT",
    "PIP_RETRIES",
    "PIP_TRUSTED_HOST",
    "UV_HTTP_TIMEOUT",
    "UV_INDEX_STRATEGY",
    "UV_INSECURE_HOST",
)
_URLS = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "http_proxy",
    "https_proxy",
)
_PIP_KEYS = {
    "index-url": "PIP_INDEX_URL",
    "extra-index-url": "PIP_EXTRA_INDEX_URL",
    "trusted-host": "PIP_TRUSTED_HOST",
    "timeout": "PIP_DEFAULT_TIMEOUT",
}


@dataclass(frozen=True, slots=True)
class HostBuildEnvironment:
    """Variables for RUN steps; they go into no image.

    ``variables`` hold indexes, proxies and time limits; ``private_cas`` are certificates (PEM) the
    host trusts beyond the public ones, which bases take over.
    """

    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    private_cas: tuple[bytes, ...] = ()

    def environment(self, view: MergedView) -> dict[str, str]:
        """The variables for a RUN in the image ``view``."""
        env = dict(self.variables)
        if self.private_cas and view.find(IMAGE_CA_BUNDLE) is not None:
            env.update(dict.fromkeys(_CA_VARIABLES, IMAGE_CA_BUNDLE))
        return env

    @property
    def ca_digest(self) -> str:
        """Names the set of private certificates."""
        return hashlib.sha256(b"".join(sorted(self.private_cas))).hexdigest()[:16]


def read_host(
    environ: Mapping[str, str] = os.environ, pip_files: Sequence[Path] | None = None
) -> HostBuildEnvironment:
    """What this machine says about package indexes and private certificate authorities."""
    variables = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    files = _pip_files(environ) if pip_files is None else pip_files
    for name, value in {**_from_pip_files(files), **environ}.items():
        if name in _PLAIN:
            variables[name] = value
        elif name in _URLS:
            usable = [word for word in value.split() if _is_remote(word)]
            if usable:
                variables[name] = " ".join(usable)
        elif name.lower() == "no_proxy":
            variables[name] = value
    if "PIP_INDEX_URL" in variables and not {"UV_DEFAULT_INDEX", "UV_INDEX_URL"} & set(variables):
        variables["UV_DEFAULT_INDEX"] = variables["PIP_INDEX_URL"]
    return HostBuildEnvironment(variables, tuple(_private_cas()))


def _is_remote(url: str) -> bool:
    """Whether a container can use ``url`` too (an index by HTTP, or a proxy as host:port)."""
    target = url.rpartition("=")[2] if url.count("=") == 1 else url
    return target.startswith(("http://", "https://")) or not (
        "://" in target or target.startswith("/")
    )


def _pip_files(environ: Mapping[str, str]) -> list[Path]:
    home = Path.home()
    files = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf",
        Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf",
    ]
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    return [*files, Path(named)] if named else files


def _from_pip_files(files: Sequence[Path]) -> dict[str, str]:
    """The index settings of pip's configuration files, the later file winning."""
    found: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file)
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        for section in ("global", "install"):
            for key, variable in _PIP_KEYS.items():
                if parser.has_option(section, key):
                    found[variable] = " ".join(parser.get(section, key).split())
    return found


def _private_cas() -> list[bytes]:
    """Certificates in the host's bundle that are not among its public ones."""
    bundle = next((Path(path) for path in _HOST_CA_BUNDLES if Path(path).is_file()), None)
    if bundle is None or not _HOST_PUBLIC_CAS.is_dir():
        return []
    public: set[bytes] = set()
    for file in _HOST_PUBLIC_CAS.rglob("*.crt"):
        public.update(_bodies(file.read_bytes()))
    return [
        pem + b"\n" for pem in _CERTIFICATE.findall(bundle.read_bytes()) if _body(pem) not in public
    ]


def _bodies(data: bytes) -> list[bytes]:
    return [_body(pem) for pem in _CERTIFICATE.findall(data)]


def _body(pem: bytes) -> bytes:
    return b"".join(pem.split())
