"""A real curate job through Ray against hosts that say what may be done with their pictures, in every way they can."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from curation.engine import CurateResult, curate
from curation.job import CurateJob
from curation.listing import listing
from curation.manifest import Manifest
from tests.curation.hosts import Answer, Hosts
from tests.curation.pictures import encoded, noise

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def text(body: str, kind: str = "text/plain", status: int = 200) -> Answer:
    return Answer(body.encode(), status, [("Content-Type", kind)])


def picture(seed: int, *headers: tuple[str, str], **settings: Any) -> Answer:
    return Answer(encoded(noise(seed), **settings), headers=[("Content-Type", "image/png"), *headers])


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts() as server:
        yield server


Row = dict[str, Any]


@pytest.fixture(scope="module")
def crawled(
    ray_cluster: None, hosts: Hosts, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], dict[str, Row], CurateResult]:
    """A URL for each case, and what its row came to: reason, verdict and evidence."""
    folder = tmp_path_factory.mktemp("live")
    urls: dict[str, str] = {}
    pages: dict[str, str] = {}
    count = iter(range(1000))

    def case(
        name: str, origin: str, *headers: tuple[str, str], path: str = "/a.png", data: bytes | None = None
    ) -> None:
        answer = picture(next(count), *headers)
        urls[name] = hosts.put(origin + path, Answer(data, headers=answer.headers) if data else answer)

    case("nothing said", hosts.add())
    robots = hosts.add(robots__txt=text("User-agent: *\nDisallow: /private/\n\nUser-agent: GPTBot\nDisallow: /\n"))
    case("robots allows", robots)
    case("robots disallows", robots, path="/private/a.png")
    case(
        "robots names us",
        hosts.add(robots__txt=text("User-agent: cleanplate\nDisallow: /\n\nUser-agent: *\nAllow: /\n")),
    )
    case("robots is ill", hosts.add(robots__txt=text("", status=503)))
    case("aipref in robots", hosts.add(robots__txt=text("User-agent: *\nContent-Usage: train-ai=n\nAllow: /\n")))
    case("aipref in the answer", hosts.add(), ("Content-Usage", "train-ai=n"))
    case("aipref permits", hosts.add(), ("Content-Usage", "train-ai=y"))
    case(
        "content signal",
        hosts.add(robots__txt=text("User-agent: *\nContent-Signal: ai-train=no, search=yes\nAllow: /\n")),
    )
    reserved = text(json.dumps([{"location": "/*", "tdm-reservation": 1}]), "application/json")
    tdm = hosts.add()
    hosts.put(f"{tdm}/.well-known/tdmrep.json", reserved)
    case("tdmrep", tdm)
    case("tdmrep taken back", tdm, ("tdm-reservation", "0"), path="/free.png")
    case("tdm-reservation header", hosts.add(), ("tdm-reservation", "1"))
    ill = hosts.add()
    hosts.put(f"{ill}/.well-known/tdmrep.json", text("[{", "application/json"))
    case("tdmrep cannot be read", ill)
    case("NoAI in the answer", hosts.add(), ("X-Robots-Tag", "index"), ("X-Robots-Tag", "NoAI, noimageai"))
    case("noai for another", hosts.add(), ("X-Robots-Tag", "otherbot: noai"))
    case("ai.txt", hosts.add(ai__txt=text("User-Agent: *\nDisallow: *.png\n")))
    page = hosts.add()
    case("noimageai on its page", page)
    meta = '<html><head><meta name="robots" content="noimageai"></head></html>'
    pages["noimageai on its page"] = hosts.put(f"{page}/page.html", text(meta, "text/html"))
    rsl = (
        '<rsl xmlns="https://rslstandard.org/rsl"><content url="/"><license>'
        '<prohibits type="usage">ai-train</prohibits></license></content></rsl>'
    )
    licensed = hosts.add()
    hosts.put(f"{licensed}/license.xml", text(rsl, "application/rsl+xml"))
    hosts.put(f"{licensed}/robots.txt", text(f"License: {licensed}/license.xml\nUser-agent: *\nAllow: /\n"))
    case("RSL", licensed)
    leads = hosts.add()
    urls["leads to one who refuses"] = hosts.put(
        f"{leads}/a.png", Answer(status=302, headers=[("Location", urls["robots disallows"])])
    )
    case("gone host", "http://127.0.0.250:9")
    refused = encoded(noise(500, (256, 192)))
    case("original, refused", hosts.add(), ("X-Robots-Tag", "noai"), data=refused)
    case("copy elsewhere", hosts.add(), data=encoded(noise(500, (256, 192)), "JPEG", quality=85))

    rows = "\n".join(f"{url},{pages.get(name, '')}" for name, url in urls.items())
    (folder / "urls.csv").write_text(f"url,page_url\n{rows}\n")
    fields = {
        "source": {"kind": "table", "path": str(folder / "urls.csv")},
        "output": str(folder / "manifests"),
        "fetch": {"allow_private": True, "timeout_s": 5, "retries": 0},
        "licences": {"unstated": "keep"},
        "clip": None,
        "captions": [],
        "image_size": 32,
        "unit_size": 4,
        "workers": 2,
    }
    result = curate(listing(CurateJob.model_validate(fields)))
    table = Manifest.open(result.manifest).table(["uri", "decision", "reason", "rule", "rights", "rights_verdict"])
    by_uri = {row["uri"]: row for row in table.to_pylist()}
    return urls, {name: by_uri[url] for name, url in urls.items()}, result


EXPECTED = {
    # name: (decision, reason, verdict, signal that decided)
    "nothing said": ("kept", "passed", "unknown", None),
    "robots allows": ("kept", "passed", "unknown", None),
    "robots disallows": ("dropped", "opted_out", "deny", "robots"),
    "robots names us": ("dropped", "opted_out", "deny", "robots"),
    "robots is ill": ("failed", "site_unreachable", "deny", "robots"),
    "aipref in robots": ("dropped", "opted_out", "deny", "aipref"),
    "aipref in the answer": ("dropped", "opted_out", "deny", "aipref"),
    "aipref permits": ("kept", "passed", "allow", "aipref"),
    "content signal": ("dropped", "opted_out", "deny", "content_signal"),
    "tdmrep": ("dropped", "opted_out", "deny", "tdmrep"),
    "tdmrep taken back": ("kept", "passed", "allow", "tdmrep"),
    "tdm-reservation header": ("dropped", "opted_out", "deny", "tdmrep"),
    "tdmrep cannot be read": ("held", "rights_error", "error", "tdmrep"),
    "NoAI in the answer": ("dropped", "opted_out", "deny", "x_robots_tag"),
    "noai for another": ("kept", "passed", "unknown", None),
    "ai.txt": ("dropped", "opted_out", "deny", "ai_txt"),
    "noimageai on its page": ("dropped", "opted_out", "deny", "meta_robots"),
    "RSL": ("dropped", "opted_out", "deny", "rsl"),
    "leads to one who refuses": ("dropped", "opted_out", "deny", "robots"),
    "gone host": ("failed", "site_unreachable", "deny", "robots"),
    "original, refused": ("dropped", "opted_out", "deny", "x_robots_tag"),
    "copy elsewhere": ("dropped", "opted_out_near_copy", "deny", "optout_near_copy"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_every_row_has_the_verdict_and_the_evidence(
    crawled: tuple[dict[str, str], dict[str, Row], CurateResult], name: str
) -> None:
    decision, reason, verdict, signal = EXPECTED[name]
    row = crawled[1][name]
    assert (row["decision"], row["reason"], row["rights_verdict"]) == (decision, reason, verdict), row["rights"]
    if signal is not None:
        assert any(seen["signal"] == signal and seen["verdict"] == verdict for seen in row["rights"]), row["rights"]
    times = [seen["observed_at"] for seen in row["rights"] if seen["where"].startswith("http")]
    assert all(t is not None and abs(datetime.now(UTC) - t) < timedelta(hours=1) for t in times)


def test_no_case_is_left_out(crawled: tuple[dict[str, str], dict[str, Row], CurateResult]) -> None:
    assert crawled[0].keys() == EXPECTED.keys()
    assert crawled[2].rows == len(EXPECTED)


def test_a_site_is_asked_once_by_all_workers_and_not_for_what_it_refuses(
    crawled: tuple[dict[str, str], dict[str, Row], CurateResult], hosts: Hosts
) -> None:
    robots = {host: n for (host, path), n in hosts.asked.items() if path == "/robots.txt"}
    ill = crawled[0]["robots is ill"].split("/")[2].partition(":")[0]
    assert {n for host, n in robots.items() if host != ill} == {1}
    for name in ("robots disallows", "robots names us", "aipref in robots", "content signal", "ai.txt", "RSL"):
        host, _, path = crawled[0][name].removeprefix("http://").partition("/")
        assert hosts.asked[host.partition(":")[0], f"/{path}"] == 0, name
    assert hosts.agents == {"cleanplate/0.1"}


def test_advice_to_others_is_kept_and_decides_only_where_it_is_to(
    crawled: tuple[dict[str, str], dict[str, Row], CurateResult],
) -> None:
    seen = [o for o in crawled[1]["robots allows"]["rights"] if o["signal"] == "robots_ai_agents"]
    assert seen
    assert "GPTBot" in seen[0]["value"]
    assert Manifest.open(crawled[2].manifest).info.evidence_from is not None
