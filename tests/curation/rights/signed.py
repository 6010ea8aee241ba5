"""Pictures with real C2PA manifests, signed by a certificate chain that is made on the spot."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

import c2pa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

MEDIA = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
    "AVIF": "image/avif",
    "GIF": "image/gif",
}
_CREATED = {
    "label": "c2pa.actions",
    "data": {
        "actions": [
            {
                "action": "c2pa.created",
                "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture",
            }
        ]
    },
}


class Chain(NamedTuple):
    """PEM: the signer's certificate and its issuer's, and the signer's private key."""

    certificates: bytes
    key: bytes
    root: bytes


@cache
def chain() -> Chain:
    """A root and a signer's certificate with what C2PA's certificate profile (section 14.5) asks for."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name = _name("Root of the tests")
    root = _certificate(root_name, root_name, root_key, root_key, ca=True)
    leaf = _certificate(_name("Signer of the tests"), root_name, key, root_key, ca=False)
    pem = serialization.Encoding.PEM
    return Chain(
        leaf.public_bytes(pem) + root.public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        root.public_bytes(pem),
    )


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cleanplate"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _certificate(subject: x509.Name, issuer: x509.Name, key: Any, signer: Any, *, ca: bool) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(_usage(ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=True)
    return builder.sign(signer, hashes.SHA256())


def _usage(ca: bool) -> x509.KeyUsage:
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


def plain(kind: str = "JPEG", colour: tuple[int, int, int] = (200, 80, 30)) -> bytes:
    """A small picture without metadata."""
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(buffer, kind)
    return buffer.getvalue()


def mining(label: str, **uses: str) -> dict[str, Any]:
    """A training-mining assertion; its entries take the prefix of its label."""
    prefix = label.split(".", 1)[0]
    return {"label": label, "data": {"entries": {f"{prefix}.{name}": {"use": use} for name, use in uses.items()}}}


def sign(
    picture: bytes,
    kind: str,
    *assertions: dict[str, Any],
    ingredients: tuple[tuple[bytes, str], ...] = (),
    remote: str | None = None,
    actions: dict[str, Any] = _CREATED,
) -> bytes:
    """The picture with a manifest of these assertions.

    Args:
        ingredients: other files (of the same kind) and their relationship, `parentOf` or `componentOf`.
        remote: leave the manifest out and name this URL for it.
    """
    made = {
        "claim_generator_info": [{"name": "cleanplate tests", "version": "1"}],
        "format": MEDIA[kind],
        "title": "picture",
        "assertions": [actions, *assertions],
    }
    with c2pa.Builder(json.dumps(made)) as builder, c2pa.Signer.from_info(_signer()) as signer:
        for data, relationship in ingredients:
            about = {"title": "ingredient", "relationship": relationship}
            builder.add_ingredient(json.dumps(about), MEDIA[kind], io.BytesIO(data))
        if remote is not None:
            builder.set_no_embed()
            builder.set_remote_url(remote)
        signed = io.BytesIO()
        builder.sign(signer, MEDIA[kind], io.BytesIO(picture), signed)
    return signed.getvalue()


def _signer() -> c2pa.C2paSignerInfo:
    made = chain()
    return c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, made.certificates, made.key, None)
