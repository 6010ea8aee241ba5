"""What rights cost: `python -m tests.bench.rights`.

Three sides in alternating rounds over the same 512-pixel JPEGs of photographs, one process, one thread: the curation
front end as it is without any signal (bytes in memory, sha256, metadata, scaled decode once, hashes, the tensor that
CLIP would take); the same with every signal on, for pictures as if they came from sites that say something in every
file a site can speak in, in headers and in the pictures themselves (files of sites cached and parsed, as they are for
every picture of a site but the first); and the ruling on the rows. Ratios are of CPU time.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from curation.fetch import Answer, FetchConfig, Fetched, row_id
from curation.hashes import perceptual, pixel_hash
from curation.images import ImageConfig, centre, decode
from curation.manifest import now
from curation.metadata import scan
from curation.places import origin
from curation.rights import embedded
from curation.rights.config import RightsConfig
from curation.rights.evidence import SiteFile
from curation.rights.statements import Site, of_file
from curation.rights.verdict import verdict
from curation.site_rights import SiteRights
from tests.bench.curation import pictures

COUNT, ROUNDS, TENSOR, SITES = 512, 7, 224, 16

_AGENTS = "\n\n".join(f"User-agent: bot{i}\nDisallow: /" for i in range(160))
_ROBOTS = f"""{_AGENTS}

User-agent: GPTBot
User-agent: CCBot
Disallow: /

User-agent: *
Content-Usage: train-ai=y
Content-Signal: ai-train=yes, search=yes
Disallow: /admin/
Disallow: /*?session=
Allow: /
License: %s/license.xml
"""
_TDMREP = json.dumps([{"location": f"/section-{i}/*", "tdm-reservation": 0} for i in range(40)])
_AI_TXT = "User-Agent: *\nDisallow: *.zip\nAllow: *.jpg\n"
_RSL = (
    '<rsl xmlns="https://rslstandard.org/rsl"><content url="/section-0/"><license>'
    '<permits type="usage">all</permits></license></content></rsl>'
)
_HEADERS = {
    "x-robots-tag": ["max-image-preview:large", "otherbot: noai"],
    "content-usage": ["train-ai=y, search=y"],
    "tdm-reservation": ["0"],
}


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        data = pictures(Path(scratch) / "pictures", COUNT)
    urls = [f"https://site-{i % SITES}.example/section-{i % 40}/picture-{i}.jpg" for i in range(COUNT)]
    rights, sites = _rights()
    fetched = [Fetched(d, now(), answers=(Answer(u, 200, _HEADERS),)) for u, d in zip(urls, data, strict=True)]
    times: dict[str, list[float]] = {"front end": [], "rights": []}
    for _ in range(ROUNDS):
        begun = time.process_time()
        for one in data:
            _front_end(one)
        times["front end"].append(time.process_time() - begun)
        begun = time.process_time()
        for url, one in zip(urls, fetched, strict=True):
            _observe(rights, sites, url, one)
        times["rights"].append(time.process_time() - begun)
    table = Table(title=f"{COUNT} JPEGs of 512 pixels on {SITES} sites, one thread, CPU time")
    for column in ("", "µs an image (median)", "min", "max"):
        table.add_column(column, justify="right")
    for name, found in times.items():
        table.add_row(name, *(f"{f(found) / COUNT * 1e6:.0f}" for f in (statistics.median, min, max)))
    Console().print(table)
    ratio = statistics.median(a / b for a, b in zip(times["rights"], times["front end"], strict=True))
    print(json.dumps({"ratios": {"rights_over_front_end": round(ratio, 3)}}))


def _front_end(data: bytes) -> None:
    row_id("", data)
    about = scan(data)
    found = decode(data, ImageConfig(), TENSOR, about)
    perceptual(found.pixels)
    pixel_hash(found.pixels)
    centre(found.pixels, TENSOR)


def _rights() -> tuple[SiteRights, dict[str, Site]]:
    config = RightsConfig()
    rights = SiteRights(config, FetchConfig().product, None, None)  # type: ignore[arg-type]  # every site is known
    sites: dict[str, Site] = {}
    for number in range(SITES):
        place = f"https://site-{number}.example"
        files = {
            "robots": _file(f"{place}/robots.txt", _ROBOTS % place),
            "tdmrep": _file(f"{place}/.well-known/tdmrep.json", _TDMREP),
            "ai_txt": _file(f"{place}/ai.txt", _AI_TXT),
            f"{place}/license.xml": _file(f"{place}/license.xml", _RSL),
        }
        sites[place] = Site(files, config, FetchConfig().product)
        rights.know(place, sites[place])
    return rights, sites


def _file(url: str, body: str) -> SiteFile:
    return SiteFile(url=url, status=200, body=body.encode(), content_type="text/plain", observed_at=now())


def _observe(rights: SiteRights, sites: dict[str, Site], url: str, fetched: Fetched) -> None:
    assert fetched.data is not None
    assert sites[origin(url) or ""].refusal(url, RightsConfig().advisory) is None  # before it is asked for
    seen = [*rights.observe(url, fetched), *of_file(fetched.data, RightsConfig())]
    seen += embedded.observe(scan(fetched.data).fields)
    assert verdict(seen).value == "allow"


if __name__ == "__main__":
    main()
