"""Frame folders: a folder's files that differ by a number in their names are one moving picture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from curation.containers import frame_folder, is_member

_NUMBERED = re.compile(r"(.*?)([0-9]+)(\.[A-Za-z0-9]+)", re.DOTALL)


def gathered(files: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Puts the frames of each frame folder together.

    A frame folder lies below the source's own, and all the files directly in it, two at least, are called alike but for
    the number before their ending: `frame-1.png`, `frame-2.png`, …, `frame-10.png`, in the order of the numbers. Files
    of any other folder stay inputs of their own, so every file belongs to one input.

    Args:
        files: by name below the source's folder, location, size and time of each.

    Returns:
        The inputs by name, a frame folder's ending in a slash; and of each frame's name that of its folder.
    """
    folders: dict[str, list[str]] = {}
    for name in files:
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    found = dict[str, dict[str, Any]]()
    of: dict[str, str] = {}
    for folder, names in folders.items():
        order = _in_order(names) if folder else None
        if order is None:
            found |= {name: dict(files[name]) for name in names}
            continue
        frames = [files[name] for name in order]
        refused = [f["location"] for f in frames if is_member(f["location"])]  # which says itself why it is not read
        found[f"{folder}/"] = {
            "location": (refused or [frame_folder([(f["location"], f["size"], f["modified"]) for f in frames])])[0],
            "size": _joined(sum, [f["size"] for f in frames]),
            "modified": _joined(max, [f["modified"] for f in frames]),
        }
        of |= dict.fromkeys(names, f"{folder}/")
    return found, of


def _in_order(names: list[str]) -> list[str] | None:
    """The names by their numbers; None where they are no frames of one picture."""
    numbered = [_NUMBERED.fullmatch(name.rpartition("/")[2]) for name in names]
    if len(names) < 2 or len({m and (m[1], m[3].lower()) for m in numbered}) > 1 or numbered[0] is None:
        return None
    numbers = [int(m[2]) for m in numbered if m is not None]
    return [name for _, name in sorted(zip(numbers, names, strict=True))]


def _joined(how: Any, values: list[Any]) -> Any:
    return None if any(value is None for value in values) else how(values)
