"""The one family of errors that a user can mend.

The command line turns a `UserError` into exit status 2 and prints its three parts; anything else that is raised is a
defect or a fault of the machine, and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

_E = TypeVar("_E", bound=BaseException)


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


def unknown(name: str, known: Iterable[str]) -> str:
    """The remedy for a name that is none of the known ones: the one that was meant, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"remove it; known here: {', '.join(names)}"


def cause_of(error: BaseException, *kinds: type[_E]) -> _E | None:
    """The first of these kinds among an error and what lies behind it; Ray wraps what its workers raise."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, kinds):
        seen = wrapped(seen) or seen.__cause__
    return seen


def wrapped(error: BaseException) -> BaseException | None:
    """What Ray has put an error of its own around; None where it has not."""
    inner = getattr(error, "cause", None) or getattr(error, "_base_exc", None)  # RayTaskError; Ray Train's own
    return inner if isinstance(inner, BaseException) else None


def _rebuild(message: str, field: str | None, remedy: str | None) -> UserError:
    return UserError(message, field=field, remedy=remedy)
