"""What a process and its descendants listen on, by the kernel's books."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path
from typing import NamedTuple

_LISTENING = "0A"


class Listener(NamedTuple):
    """A TCP socket that takes connections."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int
    process: str

    @property
    def reached_from_elsewhere(self) -> bool:
        """Whether a connection may come from another machine; IPv4 may be written as IPv6."""
        address = getattr(self.address, "ipv4_mapped", None) or self.address
        return not address.is_loopback


def listeners(root: int) -> list[Listener]:
    """Those of a process and all below it."""
    owners: dict[str, str] = {}
    for pid in _tree(root):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()[:200]
            held = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue  # it ended meanwhile
        owners |= {found[1]: name for link in held if (found := re.fullmatch(r"socket:\[(\d+)\]", link))}
    return [
        Listener(_address(place), int(port, 16), owners[inode])
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        for fields in [line.split()]
        for place, port, state, inode in [(*fields[1].split(":"), fields[3], fields[9])]
        if state == _LISTENING and inode in owners
    ]


def _tree(root: int) -> list[int]:
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            below.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += below.get(pid, [])
    return found


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Of words of four bytes, each in the machine's order."""
    raw = bytes.fromhex(text)
    packed = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    return ipaddress.ip_address(socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed))
