"""What must not happen: code that says so when it is run, and a secret that lies where nobody is to look."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECRET = b"nobody was to read this"


class Program:
    """Whoever unpickles it makes a folder."""

    def __init__(self, where: Path) -> None:
        self._where = str(where)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self._where,)


def secret(folder: Path) -> Path:
    """A file beside what is to be read."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "secret.png"
    path.write_bytes(SECRET)
    return path
