"""`cleanplate credentials init`: a certificate and keys for a server that has none."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from curation.errors import UserError


class Initialised(BaseModel):
    """What was written."""

    folder: str
    worth: str


def init(folder: str | None, *, organisation: str | None) -> Initialised:
    """Makes a root, a signer's certificate and the watermark's key.

    Args:
        folder: a new one; where servers look when not given.
        organisation: the certificates' name of who signs.

    Raises:
        UserError: the folder is there, or cannot be written.
    """
    from serving import identity

    where = identity.folder_of(identity.CredentialsConfig(folder=folder))
    options = {} if organisation is None else {"organisation": organisation}
    try:
        made = not where.exists() and identity.create(where, **options)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {where}: {error}", field="FOLDER", remedy="name another one") from error
    if not made:
        raise UserError(
            f"{where} is there already",
            field="FOLDER",
            remedy="what was signed with its keys is checked with them: keep it, and name a new folder",
        )
    return Initialised(folder=str(where), worth=identity.WORTH)


def summary(done: Initialised) -> list[str]:
    """The result for a person."""
    root = Path(done.folder) / "ca.pem"
    return [
        f"{done.folder} holds a certificate and keys now; README.txt there says which is which",
        done.worth,
        f"whoever is to check your pictures needs {root}; several machines need the same folder",
    ]
