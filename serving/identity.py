"""Whose name pictures are signed in, and the keys for it, as files in one folder.

`ca.pem` and `ca.key` (a root of one's own), `signer.pem` (its certificate for the server, and the root behind it),
`signer.key`, `watermark.key`, and a README. Everything secret has mode 0600, is never logged and is in no job file: a
job names paths, and the environment may hold a private key that is to be on no disk.
"""

from __future__ import annotations

import datetime
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from curation.errors import UserError
from serving import certificates

FOLDER_VARIABLE = "CLEANPLATE_CREDENTIALS"
KEY_VARIABLE = "CLEANPLATE_SIGNING_KEY"
WORTH = (
    "This certificate was made on this machine and nobody vouches for it. A signature with it proves that the file is "
    "as it was signed, and that whoever signed had this key: that it comes from this server. It proves nobody's "
    "identity: other people's programs will say that the signer is unknown, unless they are given ca.pem."
)
_README = f"""Content credentials of a cleanplate server.

{WORTH}

ca.pem         the root: give it to whoever is to check your pictures
ca.key         signs new certificates; keep it elsewhere, the server does not need it
signer.pem     the server's certificate, and the root
signer.key     signs pictures: who has it can sign in this server's name
watermark.key  who has it can find the watermark, forge it and take it away
"""


class CredentialsConfig(BaseModel):
    """Content credentials (C2PA): a signed statement in each picture's file of what made it, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    enabled: bool = Field(True, description="whether every picture's file is signed")
    folder: str | None = Field(
        None,
        description="certificate and keys; made with a root of its own where there is none; null: "
        "$CLEANPLATE_CREDENTIALS, else $XDG_CONFIG_HOME/cleanplate/credentials or ~/.config. Several machines need the "
        "same one",
    )
    certificate: str | None = Field(
        None, description="your own certificate chain, PEM, the signer's first; null: the folder's"
    )
    private_key: str | None = Field(
        None, description="its private key, a PEM file; null: $CLEANPLATE_SIGNING_KEY holds the key itself"
    )
    anchors: str | None = Field(
        None, description="PEM roots that are trusted when files are checked; null: the last certificate of the chain"
    )


class WatermarkConfig(BaseModel):
    """The invisible mark in a picture's pixels, which outlives its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    enabled: bool = Field(True, description="whether every picture of 32 pixels a side and more is marked")
    key_file: str | None = Field(
        None, description="a file with the secret, 16 bytes and more; null: watermark.key in the credentials' folder"
    )


@dataclass(frozen=True)
class Trust:
    """Whose signatures count.

    Attributes:
        anchors: PEM roots; whom they vouch for is trusted.
        serial: of the certificate whose signatures are ours; None: of all that the roots vouch for.
    """

    anchors: str
    serial: str | None = None


@dataclass(frozen=True)
class Identity:
    """What pictures are signed with.

    Attributes:
        chain: certificates in PEM, the signer's first.
        key: its private key in PEM.
        algorithm: c2pa's name of the signature's algorithm.
        trust: by which the signatures are told again.
    """

    chain: bytes
    key: bytes = field(repr=False)
    algorithm: str
    trust: Trust


def rooted(credentials: CredentialsConfig, watermark: WatermarkConfig) -> dict[str, BaseModel]:
    """A job's two fields with absolute paths: replicas may run in another folder, and with another environment."""

    def absolute(path: str | None) -> str | None:
        return None if path is None else os.path.abspath(path)

    paths = {name: absolute(getattr(credentials, name)) for name in ("certificate", "private_key", "anchors")}
    folder = os.path.abspath(folder_of(credentials))
    return {
        "credentials": credentials.model_copy(update={**paths, "folder": folder}),
        "watermark": watermark.model_copy(update={"key_file": absolute(watermark.key_file)}),
    }


def folder_of(config: CredentialsConfig) -> Path:
    """Where certificate and keys lie."""
    if config.folder is not None:
        return Path(config.folder)
    if os.environ.get(FOLDER_VARIABLE):
        return Path(os.environ[FOLDER_VARIABLE])
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cleanplate" / "credentials"


def ensure(credentials: CredentialsConfig, watermark: WatermarkConfig | None = None) -> bool:
    """Makes the folder with a root of its own where something of it is wanted and it is not there; tells whether so.

    Raises:
        UserError: it cannot be written.
    """
    folder = folder_of(credentials)
    own_certificate = credentials.certificate is not None or not credentials.enabled
    if folder.is_dir() or (own_certificate and watermark is not None and watermark.key_file is not None):
        return False
    try:
        return create(folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror}",
            field="credentials.folder",
            remedy="name another folder, or set credentials.enabled and watermark.enabled to false",
        ) from error


def create(folder: Path, *, organisation: str = "cleanplate, a certificate of its own making") -> bool:
    """Writes a root, a signer's certificate and the watermark's key; False where another process was quicker.

    The folder appears whole: whoever finds it finds everything in it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))  # of mode 0700
    try:
        for name, content in {
            **certificates.make(organisation),
            "watermark.key": secrets.token_hex(32).encode(),
        }.items():
            _write(made / name, content, 0o600 if name.endswith(".key") else 0o644)
        _write(made / "README.txt", _README.encode(), 0o644)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            return False
        return True
    finally:
        shutil.rmtree(made, ignore_errors=True)


def load(config: CredentialsConfig) -> Identity:
    """The certificate and key of a configuration.

    Raises:
        UserError: files that are not there or do not fit, or a certificate that has run out.
    """
    generated = config.certificate is None
    folder = folder_of(config)
    chain = _read(Path(config.certificate or folder / "signer.pem"), "credentials.certificate")
    if generated:
        key = _read(folder / "signer.key", "credentials.folder")
    elif config.private_key is not None:
        key = _read(Path(config.private_key), "credentials.private_key")
    else:
        key = os.environ.get(KEY_VARIABLE, "").encode()
    issued, algorithm = _checked(chain, key)
    if config.anchors is not None:
        anchors = _read(Path(config.anchors), "credentials.anchors").decode()
    else:
        anchors = certificates.pem(issued[-1]).decode()
    # A root of our own vouches for nobody else, and for the certificates that come after this one.
    return Identity(chain, key, algorithm, Trust(anchors, None if generated else str(issued[0].serial_number)))


def trust_of(path: str) -> Trust:
    """Trust in the roots of a PEM file alone: for who checks pictures and signs none. Raises UserError."""
    return Trust(_read(Path(path), "anchors").decode("latin-1"))


def watermark_key(config: WatermarkConfig, credentials: CredentialsConfig) -> bytes:
    """The watermark's secret. Raises UserError when there is none, or one that can be guessed."""
    field_name = "watermark.key_file"
    path = Path(config.key_file) if config.key_file is not None else folder_of(credentials) / "watermark.key"
    key = _read(path, field_name).strip()
    if len(key) < 16:
        raise UserError(f"the secret in {path} is too short", field=field_name, remedy="use 16 bytes or more")
    return key


def _checked(chain: bytes, key: bytes) -> tuple[list[Any], str]:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    name = "credentials.certificate"
    try:
        issued = x509.load_pem_x509_certificates(chain)
    except ValueError:
        raise UserError("it holds no certificates", field=name, remedy="give a PEM file, the signer's first") from None
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError):
        raise UserError(
            "there is no private key that can be read",
            field="credentials.private_key",
            remedy=f"name a PEM file without a password, or put its text into ${KEY_VARIABLE}",
        ) from None
    signer: Any = issued[0]
    if private.public_key() != signer.public_key():
        raise UserError(
            "the private key is not the certificate's", field=name, remedy="put the signer's certificate first"
        )
    if signer.not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        raise UserError(
            f"the certificate ran out on {signer.not_valid_after_utc:%Y-%m-%d}", field=name, remedy="get a new one"
        )
    return list(issued), _algorithm(private)


def _algorithm(private: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in curves:
        return curves[private.curve.name]
    raise UserError(
        "C2PA has no algorithm for this kind of key",
        field="credentials.private_key",
        remedy="use ECDSA on P-256, P-384 or P-521, Ed25519, or RSA",
    )


def _read(path: Path, field_name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}",
            field=field_name,
            remedy="`cleanplate credentials init` writes a certificate and keys",
        ) from error


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
