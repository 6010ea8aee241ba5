"""The one family of errors that a user can mend.

The command line turns a `UserError` into exit status 2 and prints its three parts; anything else that is raised is a
defect or a fault of the machine, and keeps its traceback.
"""

from __future__ import annotations


class UserError(Exception):
    """A mistake in a job file, a path, an environment variable or a name that the user gave.

    Args:
        message: what is wrong, in one sentence.
        field: the job file's field in dotted form (`source.path`), or the command's argument.
        remedy: what to do about it, in one sentence.
    """

    def __init__(self, message: str, *, field: str | None = None, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.remedy = remedy

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        remedy = f"\n  remedy: {self.remedy}" if self.remedy else ""
        return f"{where}{self.message}{remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not survive pickling by default; these cross Ray.
        return (_rebuild, (self.message, self.field, self.remedy))


def _rebuild(message: str, field: str | None, remedy: str | None) -> UserError:
    return UserError(message, field=field, remedy=remedy)
