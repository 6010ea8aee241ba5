"""What goes wrong with a storage while shards are made or read, told as what it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from curation.errors import UserError, cause_of

# what pyarrow's S3 and gcsfs say; a store that merely does not answer is none of it
_REFUSALS = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID",
             "UNRECOGNIZED_CLIENT", "EXPIRED_TOKEN", "Forbidden")  # fmt: skip


def is_refusal(error: BaseException) -> bool:
    """Whether a storage refused, as it will again, for lack of a right or for wrong credentials."""
    if isinstance(error, PermissionError):
        return True
    return isinstance(error, OSError) and any(word in str(error) for word in _REFUSALS)


def may_pass(error: BaseException) -> bool:
    """Whether it may be the storage's fault and not the file's. pyarrow tells of both as OSErrors."""
    return isinstance(error, OSError) and (error.errno is not None or "AWS" in str(error))


def refused(where: str, error: BaseException) -> UserError:
    """For a refusal."""
    return UserError(
        f"the storage refuses {where}: {error}",
        field="data.folder",
        remedy="check the credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION) and "
        "what they may do there",
    )


def damaged(where: str, error: BaseException) -> UserError:
    """For a file that cannot be read, or is not what was written."""
    if isinstance(error, FileNotFoundError):
        return UserError(
            f"the shard {where} is missing", field="data.folder", remedy="run the same command again: it is made anew"
        )
    return UserError(
        f"the shard {where} is damaged: {error}",
        field="data.folder",
        remedy="remove that file and run the same command again: it is made anew",
    )


@contextmanager
def refusals_told(where: str) -> Iterator[None]:
    """Refusals in the block become UserErrors; other faults stay what they are, as they may be over the next time."""
    try:
        yield
    except OSError as error:
        if is_refusal(error):
            raise refused(where, error) from None
        raise


@contextmanager
def faults_told(where: str) -> Iterator[None]:
    """A mistake that a worker of Ray found is raised as it found it, and a fault of the storage as a UserError: what is
    whole is kept, so that the same command can go on from it."""
    try:
        yield
    except Exception as error:
        cause = cause_of(error, OSError, UserError)
        if cause is None:
            raise
        if isinstance(cause, UserError):
            raise cause from None
        if is_refusal(cause):
            raise refused(where, cause) from None
        raise UserError(
            f"shards cannot be written to or read from {where}: {cause}",
            field="data.folder",
            remedy="make room or give access, and run the same command again: finished files are kept",
        ) from error
