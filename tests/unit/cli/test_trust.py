"""Which certificate authorities the client's programs trust."""

from __future__ import annotations

import ssl
from pathlib import Path

from homeport.cli.trust import trust_variables
from homeport.kernel.certificates import Authority


def test_before_the_first_start_nothing_changes(tmp_path: Path) -> None:
    assert trust_variables(tmp_path, {}) == {}
    assert list(tmp_path.iterdir()) == []


def test_the_installations_authority_is_trusted_beside_the_usual_ones(tmp_path: Path) -> None:
    own = Authority.from_folder(tmp_path).certificate
    usual = ssl.create_default_context()
    usual.load_default_certs()
    file = trust_variables(tmp_path, {})["SSL_CERT_FILE"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(file)
    trusted = context.get_ca_certs(binary_form=True)
    assert ssl.PEM_cert_to_DER_cert(own) in trusted
    assert len(trusted) > 20


def test_the_users_own_choice_of_authorities_is_kept(tmp_path: Path) -> None:
    home, theirs = tmp_path / "home", tmp_path / "theirs"
    own = Authority.from_folder(home).certificate
    other = Authority.from_folder(theirs).certificate
    file = Path(trust_variables(home, {"SSL_CERT_FILE": str(theirs / "ca.pem")})["SSL_CERT_FILE"])
    assert own in file.read_text()
    assert other in file.read_text()
    assert file.read_text().count("BEGIN CERTIFICATE") == 2


def test_asked_again_with_its_own_answer_it_does_not_grow(tmp_path: Path) -> None:
    Authority.from_folder(tmp_path)
    first = trust_variables(tmp_path, {})
    size = Path(first["SSL_CERT_FILE"]).stat().st_size
    assert trust_variables(tmp_path, first) == first
    assert Path(first["SSL_CERT_FILE"]).stat().st_size == size
