"""Orders of certificates from an ACME authority, by the challenge ``tls-alpn-01`` (RFC 8737).

Needs the extra ``homeport[acme]``. Everything here blocks; it is run in a thread.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from acme import challenges, client, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from josepy.jwa import ES256
from josepy.jwk import JWK, JWKEC

from homeport.kernel.certificates import key_pem, write_file
from homeport.kernel.errors import UnavailableError

_IDENTIFIER: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")
_OCTETS_OF_32: Final = b"\x04\x20"
_ORDER_S: Final = 120.0

Prove = Callable[[str, str, str], None]
"""Told of a name and of the certificate and key (PEM) that prove it is ours."""


@challenges.ChallengeResponse.register
class _Response(challenges.KeyAuthorizationChallengeResponse):
    typ = "tls-alpn-01"


@challenges.Challenge.register
class _TlsAlpn(challenges.KeyAuthorizationChallenge):
    response_cls = _Response
    typ = "tls-alpn-01"

    def validation(self, account_key: JWK, **_: Any) -> bytes:
        return hashlib.sha256(self.key_authorization(account_key).encode()).digest()


class Orders:
    """An account with the authority whose directory is at ``url``; its key is kept in ``folder``."""

    def __init__(self, url: str, email: str, folder: Path) -> None:
        self._url = url
        self._email = email
        self._folder = folder
        self._key: JWKEC | None = None
        self._client: client.ClientV2 | None = None

    def obtain(self, name: str, prove: Prove) -> str:
        """A certificate for ``name``: its key and its chain, PEM, in one text.

        Raises ``UnavailableError`` with what the authority said.
        """
        try:
            authority = self._connect()
            key = ec.generate_private_key(ec.SECP256R1())
            order: Any = authority.new_order(_request(name, key))  # its parts have no types
            for authorization in order.authorizations:
                if authorization.body.status != messages.STATUS_VALID:
                    self._answer(authority, authorization.body, name, prove)
            until = datetime.datetime.now() + datetime.timedelta(seconds=_ORDER_S)
            return key_pem(key) + authority.poll_and_finalize(order, until).fullchain_pem
        except errors.ValidationError as error:
            raise UnavailableError(_told(error)) from error
        except (errors.Error, messages.Error, OSError, ValueError) as error:
            raise UnavailableError(str(error) or type(error).__name__) from error

    def _connect(self) -> client.ClientV2:
        if self._client is not None:
            return self._client
        key = self._account_key()
        net = client.ClientNetwork(key, alg=ES256, user_agent="homeport")
        authority = client.ClientV2(client.ClientV2.get_directory(self._url, net), net)
        wanted = messages.NewRegistration.from_data(
            email=self._email or None, terms_of_service_agreed=True
        )
        try:
            authority.new_account(wanted)
        except errors.ConflictError as known:
            account = messages.RegistrationResource(uri=known.location, body=wanted)
            authority.query_registration(account)
        self._key, self._client = key, authority
        return authority

    def _account_key(self) -> JWKEC:
        file = self._folder / "account.key"
        if not file.exists():
            write_file(file, key_pem(ec.generate_private_key(ec.SECP256R1())).encode(), 0o600)
        key = JWKEC.load(file.read_bytes())
        if not isinstance(key, JWKEC):
            raise UnavailableError(f"{file} holds no key of an account")
        return key

    def _answer(
        self,
        authority: client.ClientV2,
        authorization: Any,
        name: str,
        prove: Prove,
    ) -> None:
        assert self._key is not None
        for offered in authorization.challenges:
            if isinstance(offered.chall, _TlsAlpn):
                response, digest = offered.response_and_validation(self._key)
                prove(name, *_proof(name, digest))
                authority.answer_challenge(offered, response)
                return
        raise UnavailableError("the authority does not offer the challenge tls-alpn-01")


def _request(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    names = x509.SubjectAlternativeName([x509.DNSName(name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    signed = request.add_extension(names, critical=True).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def _proof(name: str, digest: bytes) -> tuple[str, str]:
    """The self-signed certificate that answers the challenge, and its key; PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    proof = x509.UnrecognizedExtension(_IDENTIFIER, _OCTETS_OF_32 + digest)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=True)
        .add_extension(proof, critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), key_pem(key)


def _told(error: errors.ValidationError) -> str:
    """What the authority found wrong."""
    failed: Any = error.failed_authzrs
    found: list[str] = [
        challenge.error.detail
        for authorization in failed
        for challenge in authorization.body.challenges
        if challenge.error is not None
    ]
    return "; ".join(found) or "the authority could not verify the name"
