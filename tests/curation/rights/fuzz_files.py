"""Signed files, XMP packets and licences, mutated: nothing may crash, and only what is meant to permit permits.

    python -m tests.curation.rights.fuzz_files --inputs 100000

`fuzz.py` does the same for what sites say. A permission in a mutated file is right where the picture is still the one
that was signed (or is none any more: the manifest's own place is not under its hash); in a packet or a licence, where
an independent reading finds the permission and nothing else.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

from curation.manifest import Verdict
from curation.metadata import scan
from curation.rights import c2pa, embedded
from curation.rights.licences import Licences, LicencesConfig
from tests.curation.rights.fuzz import mutated
from tests.curation.rights.signed import MEDIA, mining, plain, sign
from tests.curation.rights.test_c2pa import pixels
from tests.curation.rights.test_licences import ALLOWED
from tests.curation.rights.test_plus import VOCABULARY, element, packet

Input = tuple[str, bytes]
_LICENCES = (
    *("CC BY-SA 4.0", "CC0 1.0 Universal", "https://creativecommons.org/licenses/by/4.0/deed.de", "GFDL", "MIT"),
    *("Attribution-ShareAlike 4.0 International (CC BY-SA 4.0)", "CC BY-NC 4.0", "CC BY 3.0 DE", "PDM-1.0"),
    *("https://creativecommons.org/licenses/by-nc/4.0/", "http://rightsstatements.org/vocab/InC/1.0/"),
)
_LIST = Licences(LicencesConfig(allow=ALLOWED))
_ATTACHED = ("NC", "ND", "InC")  # in an allowed name, none of these stands as a word


def signed_files(count: int) -> Iterator[Input]:
    """Files of every kind with a permission in them, changed in a few places."""
    assertion = mining("cawg.training-mining", ai_generative_training="allowed")
    seeds = [(kind, sign(plain(kind), kind, assertion)) for kind in MEDIA]
    chance = random.Random(0)
    for _ in range(count):
        kind, data = chance.choice(seeds)
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
            at = chance.randrange(len(changed))
            match chance.randrange(4):
                case 0:
                    changed[at] = chance.randrange(256)
                case 1:
                    changed[at : at + 4] = chance.randbytes(4)
                case 2 if len(changed) > 100:
                    del changed[at : at + chance.randrange(1, 40)]
                case _:
                    changed[at:at] = changed[at // 2 : at // 2 + chance.randrange(1, 60)]
        yield kind, bytes(changed[: chance.randrange(len(changed))] if chance.random() < 0.1 else changed)


def permits_signed(kind: str, data: bytes) -> bool:
    """Whether a file permits; raises where it does so with another picture than the one that was signed."""
    allowed = any(o.verdict == Verdict.ALLOW for o in c2pa.observe(data))
    assert not allowed or pixels(data) in (None, pixels(plain(kind))), "another picture is permitted"
    return allowed


def packets(count: int) -> Iterator[Input]:
    """XMP packets in a JPEG."""
    corpus = [
        element(VOCABULARY + "DMI-ALLOWED"),
        packet(attributes='plus:DataMining="DMI-ALLOWED"'),
        element(VOCABULARY + "DMI-PROHIBITED"),
    ]
    for data in mutated(corpus, count):
        segment = b"http://ns.adobe.com/xap/1.0/\0" + data[:60_000]
        yield "XMP", b"\xff\xd8\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + b"\xff\xd9"


def permits_packet(_: str, data: bytes) -> bool:
    allowed = any(o.verdict == Verdict.ALLOW for o in embedded.observe(scan(data).fields))
    assert not allowed or re.search(rb"dmi-allowed|&#", data.replace(b"\0", b""), re.IGNORECASE), "nothing permits"
    return allowed


def licences(count: int) -> Iterator[Input]:
    """Names and URLs of licences, those that are not listed too."""
    for data in mutated([name.encode() for name in _LICENCES], count):
        yield "licence", data


def permits_licence(_: str, data: bytes) -> bool:
    text = data.decode("utf-8", "replace")
    allowed = _LIST.observe({"licence": text, "licence_url": None}).verdict == Verdict.ALLOW
    words = re.split(r"[^A-Za-z]+", text)
    assert not allowed or not any(word.upper() == a.upper() for word in words for a in _ATTACHED), "another licence"
    return allowed


KINDS: dict[str, tuple[Callable[[int], Iterator[Input]], Callable[[str, bytes], bool]]] = {
    "c2pa": (signed_files, permits_signed),
    "plus": (packets, permits_packet),
    "licences": (licences, permits_licence),
}


def run(name: str, count: int) -> dict[str, float]:
    """Counts of what permits, what crashes or permits wrongly (printed), and seconds."""
    inputs, permits = KINDS[name]
    found: Counter[str] = Counter(inputs=0, permits=0, faults=0)
    begun = time.perf_counter()
    for kind, data in inputs(count):
        found["inputs"] += 1
        try:
            found["permits"] += permits(kind, data)
        except Exception as error:
            found["faults"] += 1
            sys.stderr.write(f"{name}: {type(error).__name__}: {error}: {data[:200]!r}\n")
    return {**found, "seconds": round(time.perf_counter() - begun, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs for each of them")
    options = parser.parse_args()
    outcomes = {name: run(name, options.inputs) for name in KINDS}
    sys.stdout.write(json.dumps(outcomes) + "\n")
    sys.exit(any(outcome["faults"] for outcome in outcomes.values()))


if __name__ == "__main__":
    main()
