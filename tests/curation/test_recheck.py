"""Rechecking a manifest: what is refused by now leaves with its near-copies, nothing else does; it may come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curation.engine import curate
from curation.errors import UserError
from curation.job import CurateJob
from curation.listing import listing
from curation.manifest import Decision, Manifest
from curation.recheck import Rechecked, derive, record, sources
from curation.takedowns import Ledger, Selector
from curation.takedowns.pictures import of_bytes
from tests.curation.hosts import Answer, Hosts
from tests.curation.pictures import drawing, encoded, noise

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def curated(folder: Path, **changes: Any) -> Manifest:
    """Twelve pictures by two people; near-copies are kept, as the job wants them to be."""
    pictures = folder / "pictures"
    pictures.mkdir()
    rows = ["path,creator,licence"]
    for i in range(8):
        (pictures / f"noise-{i}.png").write_bytes(encoded(noise(i)))
        rows.append(f"noise-{i}.png,{'Jane Doe' if i == 3 else 'John Roe'},CC0-1.0")
    (pictures / "again-3.jpg").write_bytes(encoded(noise(3), "JPEG", quality=85))
    (pictures / "red.png").write_bytes(encoded(drawing("circle", "red")))
    (pictures / "blue.png").write_bytes(encoded(drawing("circle", "blue")))
    rows += ["again-3.jpg,John Roe,CC0-1.0", "red.png,John Roe,CC0-1.0", "blue.png,John Roe,CC0-1.0"]
    (folder / "pictures.csv").write_text("\n".join(rows) + "\n")
    fields = {
        "source": {"kind": "folder", "path": str(pictures), "metadata": str(folder / "pictures.csv")},
        "output": str(folder / "manifests"),
        "licences": {"allow": ["CC0-1.0"]},
        "duplicates": {"exact": False, "pixel": False, "perceptual": None},
        "clip": None,
        "captions": [],
        "image_size": 32,
        "unit_size": 5,
    }
    return Manifest.open(curate(listing(CurateJob.model_validate(fields | changes))).manifest)


def kept(manifest: Manifest | str) -> set[str]:
    opened = Manifest.open(manifest) if isinstance(manifest, str) else manifest
    return set(opened.table(["uri"], decision=Decision.KEPT)["uri"].to_pylist())


def rechecked(manifest: Manifest | str) -> Rechecked:
    opened = Manifest.open(manifest) if isinstance(manifest, str) else manifest
    found = sources(opened)
    result = derive(found, None)
    record(found, result, "a test")
    return result


def test_what_is_taken_down_leaves_with_its_near_copies_and_comes_back(ray_cluster: None, tmp_path: Path) -> None:
    base = curated(tmp_path)
    assert len(kept(base)) == 11
    assert base.info.ledger is not None
    ledger = Ledger.open(base.info.ledger.uri)
    untouched = rechecked(base)
    assert kept(untouched.manifest) == kept(base)
    assert untouched.id != base.id

    entry = ledger.append_entry(
        requester="Jane Doe", ground="Article 17", selectors=[Selector.of("creator", " jane DOE")]
    )
    result = rechecked(base)
    assert kept(base) - kept(result.manifest) == {"noise-3.png", "again-3.jpg"}
    assert kept(result.manifest) < kept(base)
    assert result.changes == {"opted_out": 1, "opted_out_near_copy": 1}
    assert result.entries == {entry.id: 1}
    child = Manifest.open(result.manifest)
    child.verify()
    assert (child.info.parent_id, child.info.base_id) == (base.id, base.id)
    assert child.info.inputs == base.info.inputs
    rows = {row["uri"]: row for row in child.table().to_pylist()}
    before = {row["uri"]: row for row in base.table().to_pylist()}
    assert {uri for uri, row in rows.items() if row["was_kept"]} == {"noise-3.png", "again-3.jpg"}
    assert rows["noise-3.png"]["image"] is None
    assert rows["noise-3.png"]["rights_verdict"] == "deny"
    assert rows["again-3.jpg"]["duplicate_of"] == before["noise-3.png"]["id"]
    same = ("id", "image", "caption", "phash", "decision", "reason", "licence")
    for uri in kept(child):
        assert [rows[uri][name] for name in same] == [before[uri][name] for name in same]
    (action,) = ledger.read().actions_of(entry.id)
    assert (action.what, action.subject) == ("manifest_derived", child.id)

    ledger.withdraw(entry.id, by="Jane Doe", why="a misunderstanding")
    again = rechecked(child)
    assert kept(again.manifest) == kept(base), "it is the curated manifest that is decided anew"
    assert Manifest.open(again.manifest).info.parent_id == child.id
    assert Manifest.open(again.manifest).info.base_id == base.id


def test_a_picture_handed_in_takes_what_looks_like_it(ray_cluster: None, tmp_path: Path) -> None:
    base = curated(tmp_path)
    assert base.info.ledger is not None
    handed_in = of_bytes(encoded(noise(5), "JPEG", quality=60))
    Ledger.open(base.info.ledger.uri).append_entry(requester="A", ground="mine", selectors=[handed_in])
    result = rechecked(base)
    assert kept(base) - kept(result.manifest) == {"noise-5.png"}
    job = CurateJob.model_validate(base.info.job)
    afresh = Manifest.open(curate(listing(job)).manifest)
    assert kept(afresh) == kept(result.manifest), "curating again drops what rechecking drops"
    assert afresh.info.ledger is not None
    assert afresh.info.ledger.entries == 1


def test_a_ledger_that_cannot_be_read_stops_everything(ray_cluster: None, tmp_path: Path) -> None:
    base = curated(tmp_path)
    assert base.info.ledger is not None
    events = Path(base.info.ledger.uri) / "events"
    events.mkdir(parents=True)
    (events / f"entry-{'0' * 64}.parquet").write_bytes(b"half an event")
    with pytest.raises(UserError, match="damaged"):
        sources(base)
    with pytest.raises(UserError, match="damaged"):
        listing(CurateJob.model_validate(base.info.job))


def test_the_web_is_asked_again(ray_cluster: None, tmp_path: Path) -> None:
    """A header that came, a site fallen ill, a picture that is gone: refusals leave, and what cannot be known."""
    from curation.reask import ask_again

    with Hosts() as hosts:
        names = ("same", "refuses", "ill", "gone", "withheld")
        origins = {name: hosts.add() for name in names}
        urls = {
            name: hosts.put(f"{origins[name]}/{name}.png", Answer(encoded(noise(i)))) for i, name in enumerate(names)
        }
        (tmp_path / "urls.csv").write_text("\n".join(["url", *urls.values(), ""]))
        base = curated(
            tmp_path,
            source={"kind": "table", "path": str(tmp_path / "urls.csv")},
            fetch={"allow_private": True, "retries": 0, "timeout_s": 5},
            licences={"unstated": "keep"},
        )
        assert kept(base) == set(urls.values())
        fetched = sum(hosts.asked[key] for key in hosts.asked if key[1].endswith(".png"))
        hosts.put(urls["refuses"], Answer(encoded(noise(1)), headers=[("X-Robots-Tag", "noimageai")]))
        hosts.put(f"{origins['ill']}/robots.txt", Answer(status=500))
        hosts.put(urls["gone"], Answer(status=404))
        hosts.put(urls["withheld"], Answer(status=451))
        found = sources(base)
        asked: list[int] = []
        seen = ask_again(base, found.policy.job.fetch, found.policy.job.rights, 2, asked.append)
        result = derive(found, seen)
        assert sum(asked) == len(names)
        assert sum(hosts.asked[key] for key in hosts.asked if key[1].endswith(".png")) == fetched + 6, (
            "what is gone is asked for twice"
        )
    child = Manifest.open(result.manifest)
    reasons = {
        row["uri"]: (row["decision"], row["reason"]) for row in child.table(["uri", "decision", "reason"]).to_pylist()
    }
    assert {name: reasons[url] for name, url in urls.items()} == {
        "same": ("kept", "passed"),
        "refuses": ("dropped", "opted_out"),
        "ill": ("held", "rights_error"),
        "gone": ("kept", "passed"),
        "withheld": ("dropped", "opted_out"),
    }
    assert child.info.evidence_from is not None
    assert base.info.evidence_from is not None
    assert child.info.evidence_from > base.info.created_at, "what was asked again is as old as its asking"
