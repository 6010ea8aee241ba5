"""Certificates of a server's own making: a root, and a signer that it vouches for."""

from __future__ import annotations

import datetime
from typing import Any

# A signature has no trusted time here: when the signer's certificate has run out, what it signed no longer counts.
_ROOT_YEARS, _SIGNER_YEARS = 20, 10


def make(organisation: str) -> dict[str, bytes]:
    """A root and a signer, ECDSA on P-256, as C2PA's certificate profile wants them (C2PA 2.2, section 14.5)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    begins = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=5)  # clocks differ

    def draft(who: str, public: Any, years: int, *, ca: bool) -> Any:
        return (
            x509.CertificateBuilder()
            .subject_name(_name(organisation, who))
            .issuer_name(_name(organisation, "root"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + datetime.timedelta(days=365 * years))
            .add_extension(x509.BasicConstraints(ca, 0 if ca else None), critical=True)
            .add_extension(_usage(ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )

    root = draft("root", root_key.public_key(), _ROOT_YEARS, ca=True).sign(root_key, hashes.SHA256())
    signer = (
        draft("signer", key.public_key(), _SIGNER_YEARS, ca=False)
        # Of the usages that C2PA's profile allows, the one that its library accepts without a trust list.
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        .sign(root_key, hashes.SHA256())
    )
    return {
        "ca.pem": pem(root),
        "ca.key": _private(root_key),
        "signer.pem": pem(signer) + pem(root),
        "signer.key": _private(key),
    }


def _name(organisation: str, who: str) -> Any:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    # C2PA's validators call a certificate without an organisation a signature that does not match.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, f"cleanplate {who}"),
        ]
    )


def _usage(ca: bool) -> Any:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _private(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
