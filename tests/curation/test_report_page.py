"""The report page: strangers' text stays text, nothing is loaded, and pictures that nobody may see stay hidden."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.errors import UserError
from curation.manifest import ClipInfo, Manifest, RightsSource
from curation.report import pictures
from curation.report.page import clean, link, redacted, render, without_user
from pipelines import report
from tests.curation.pictures import encoded, noise
from tests.curation.test_report import AT, DIM, Text, heap, published, row, with_work

EVIL = "<script>alert('x')</script><img src=http://evil.example/a onerror=alert(1)>\u202e\x00\"'>"


def test_the_same_manifest_gives_the_same_page(tmp_path: Path) -> None:
    manifest = published(tmp_path, heap())
    assert render(manifest).html == render(Manifest.open(manifest.uri)).html


def hostile(output: Path) -> Manifest:
    """A manifest in which every text is a stranger's attempt at more than text."""
    evil = {
        **dict.fromkeys(("title", "caption", "creator", "licence", "domain", "dataset", "detail", "format"), EVIL),
        "uri": f"javascript:alert(1)//{EVIL}",
        "final_uri": f"data:text/html,{EVIL}",
        "rights": [{"signal": EVIL, "value": EVIL, "where": EVIL, "observed_at": AT, "verdict": EVIL}],
        "safety": [{"concept": EVIL, "score": 0.1}],
        "scores": [{"name": EVIL, "score": 0.1}],
        "groups": [{"set": EVIL, "group": EVIL, "score": 0.1}],
        "captions": [{"text": EVIL, "source": EVIL, "language": EVIL, "words": 1, "score": 0.2}],
    }
    other = evil | {"groups": [{"set": EVIL, "group": "b" + EVIL, "score": 0.1}]}
    copy = {"duplicate_of": "gone" + EVIL, "duplicate_kind": EVIL, "similarity": 0.5}
    rows = [
        *(row(f"a{i}", **evil) for i in range(20)),
        *(row(f"b{i}", "dropped", EVIL, f"filtered{EVIL}", rule=EVIL, **other) for i in range(9)),
        row("c", "dropped", "duplicates", "duplicate_x", **evil, **copy),
    ]
    source = RightsSource(kind=EVIL, path=EVIL, sha256=EVIL, entries=1, read_at=AT)
    clip = ClipInfo(name=EVIL, dim=DIM)
    job = {"evil": EVIL, "safety": {"concepts": {EVIL: 0.5}, "action": EVIL}, "filters": {EVIL: {"min": 0.2}}}
    return published(output, rows, job=job, rights=[source], clip=clip, name=EVIL, code_version=EVIL)


def test_what_strangers_wrote_stays_text(tmp_path: Path) -> None:
    page = render(hostile(tmp_path))
    found = Text(page.html)
    assert page.warnings  # the evil group is in a warning too
    assert {tag for tag, _ in found.elements}.isdisjoint({"script", "iframe", "object", "embed", "base", "form"})
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert {a["src"][:11] for tag, a in found.elements if tag == "img" and a["src"]} == {"data:image/"}
    assert [a["href"] for tag, a in found.elements if tag == "a" and not (a["href"] or "").startswith("#")] == []
    assert "<script>alert" in found.text
    assert "\u202e" not in page.html
    assert "\x00" not in page.html


def test_links_are_http_and_say_nothing_of_where_they_come_from(tmp_path: Path) -> None:
    uri = "https://ann:secret@example.org/a.png?b=1"
    found = Text(render(published(tmp_path, [row(uri), row("local.png"), row("ftp://example.org/a")])).html)
    links = [a for tag, a in found.elements if tag == "a" and not (a["href"] or "").startswith("#")]
    assert {a["href"] for a in links} == {"https://example.org/a.png?b=1"}
    assert {a["rel"] for a in links} == {"noreferrer nofollow noopener"}
    for text in ("javascript:alert(1)", "data:text/html,x", "//example.org", "http://", "http://[", "", None, 3):
        assert link(text) is None


def test_nothing_is_loaded_and_no_secret_is_shown(tmp_path: Path) -> None:
    page = render(published(tmp_path, heap())).html
    found = Text(page)
    assert "secret" not in page
    (policy,) = [a["content"] for tag, a in found.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert not [a for _, a in found.elements if "style" in a]  # the policy would not let it through
    outside = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(https?:[^\"')]+)", page)
    assert outside == []
    style = page.split("<style>")[1].split("</style>")[0]
    assert "@import" not in style
    assert without_user("see https://a:b@c.d/e and s3://k@bucket/x@y") == "see https://c.d/e and s3://bucket/x@y"
    assert redacted({"a": ["http://u:p@h/", 1, None], "http://u@k": True}) == {
        "a": ["http://h/", 1, None],
        "http://k": True,
    }


def shown(manifest: Manifest, **options: bool) -> dict[str, str]:
    """By uri, the data URI of a row's picture, or the words that stand instead of it."""
    uris = [uri for batch in manifest.batches(["uri"]) for uri in batch["uri"].to_pylist()]
    tiles = pictures.Album(manifest, {"weapon": 0.3, "opennsfw": 0.8}, **options).tiles(range(len(uris)))
    return {uri: tiles[i].uri or tiles[i].instead for i, uri in enumerate(uris)}


def test_pictures_of_rows_that_were_not_kept_come_from_the_work_folder_if_anybody_may_see_them(tmp_path: Path) -> None:
    armed = [row("armed", safety=[{"concept": "weapon", "score": 0.9}])]
    armed += [row(f"no number {n}", safety=[{"concept": "weapon", "score": n}]) for n in (None, math.nan)]
    rows = [*heap(), *armed]
    manifest = with_work(tmp_path, rows[:3], rows[3:])
    found = shown(manifest)
    visible = {uri for uri, tile in found.items() if tile.startswith("data:image/webp;base64,")}
    assert visible == {"apple", "pear", "unstated", "tiny", "blurred", "silent", "apple2"}
    for uri in ("painting", "unfetched", "near"):
        assert found[uri].startswith("withheld")
    assert found["knife"].startswith("veiled")
    assert {found[r["uri"]] for r in armed} == {"veiled: weapon"}
    assert found["missing"] == "no picture came"
    asked = shown(manifest, show_unsafe=True)
    assert {uri for uri, tile in asked.items() if tile.startswith("data:")} == visible | {
        "knife",
        *(r["uri"] for r in armed),
    }


def test_pictures_of_a_work_folder_that_is_gone_or_of_other_inputs_are_not_shown(tmp_path: Path) -> None:
    rows = heap()
    manifest = with_work(tmp_path, rows[:3], rows[3:])
    unit = tmp_path / "units" / "unit-u1.parquet"
    table = pq.read_table(unit)
    pq.write_table(table.take(pa.array([*range(1, table.num_rows), 0])), unit)  # rows of another order
    assert shown(manifest)["blurred"] == "the picture is no longer stored"
    unit.write_bytes(b"not parquet")
    assert shown(manifest)["blurred"] == "the picture is no longer stored"
    unit.unlink()
    assert shown(manifest)["blurred"] == "the picture is no longer stored"
    assert "the picture is no longer stored" in render(manifest).html


def test_a_thumbnail_is_small_and_a_broken_picture_is_words() -> None:
    tile = pictures.thumbnail(encoded(noise(1, (900, 300))))
    assert tile.uri is not None
    with Image.open(io.BytesIO(base64.b64decode(tile.uri.split(",")[1]))) as image:
        assert (image.format, image.size) == ("WEBP", (128, 43))
    assert pictures.thumbnail(b"GIF89a").instead == "the stored picture cannot be read"
    assert pictures.thumbnail(None).uri is None


def test_text_is_cleaned_and_cut() -> None:
    assert clean("a\u202eb\x00c\u200bd") == "a�b�c�d"
    assert clean(None) == ""
    assert clean("é" * 300, 10) == "é" * 9 + "…"
    assert clean("日本語 مرحبا") == "日本語 مرحبا"


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_has_enough_contrast(scheme: int) -> None:
    css = (Path(report.__file__).parents[1] / "curation" / "report" / "page.css").read_text()
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", css.split(":root {")[1 + scheme].split("}")[0]))
    pairs = [(ink, paper) for ink in ("ink", "soft", "link", "good", "threshold") for paper in ("paper", "card")]
    for ink, paper in [*pairs, ("soft", "track"), ("warn-ink", "warn-paper")]:
        dark, light = sorted((luminance(colours[ink]), luminance(colours[paper])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)
    for bar in ("kept", "dropped", "held", "failed"):
        dark, light = sorted((luminance(colours[bar]), luminance(colours["track"])))
        assert (light + 0.05) / (dark + 0.05) >= 2, bar


def test_the_verb_writes_the_page_and_says_what_matters(tmp_path: Path) -> None:
    made = published(tmp_path / "m", heap())
    out = tmp_path / "deep" / "report.html"
    result = report.run(str(tmp_path / "m"), str(out))
    assert (result.manifest_id, result.rows, result.bytes) == (made.id, 14, out.stat().st_size)
    assert result.counts == {"kept": 2, "dropped": 7, "held": 2, "failed": 3}
    assert report.summary(result)[0] == "14 inputs = 2 kept, 7 dropped, 2 held, 3 failed"
    assert json.loads(html.unescape(out.read_text().split("<pre>")[1].split("</pre>")[0]))["images"] == {"min_side": 64}
    with pytest.raises(UserError, match="is a folder"):
        report.run(made.uri, str(tmp_path))
    with pytest.raises(UserError, match="no manifest at"):
        report.run(str(tmp_path / "nowhere"), str(out))
    (Path(made.uri) / made.info.files[0].name).unlink()
    with pytest.raises(UserError, match="missing"):
        report.run(made.uri, str(out))
