"""Croissant metadata: mlcroissant finds no fault in it, and reads the manifest's records by it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from curation.cards import croissant
from curation.cards.disclosed import Disclosed
from curation.manifest import Manifest, schema
from tests.curation.cards.samples import disclosed, file, heap, manifest, web

mlcroissant = pytest.importorskip("mlcroissant")


def written(of: Disclosed, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "croissant.json"
    path.write_text(json.dumps(croissant.metadata(of, str(folder))))
    return path


def validated(path: Path) -> Any:
    """The dataset by mlcroissant, when it finds neither error nor warning."""
    found = mlcroissant.Dataset(str(path))
    assert not found.metadata.ctx.issues.errors
    assert not found.metadata.ctx.issues.warnings
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    rows = heap()
    rows[1] |= {"phash": 2**63 + 1, "redirects": ["https://a.example/", "https://b.example/"], "headers": None}
    rows[2] |= {"headers": [{"name": "x-robots-tag", "value": "noai"}]}
    return manifest(tmp_path_factory.mktemp("croissant"), rows[:10], rows[10:])


def test_it_is_valid_and_every_part_reads_in_place(found: Manifest, tmp_path: Path) -> None:
    dataset = validated(written(disclosed(found), tmp_path / "out"))
    ids: list[str] = []
    for record_set in ("rows-00000", "rows-00001"):
        for record in dataset.records(record_set):
            ids.append(record[f"{record_set}/id"].decode())
    assert ids == found.table(["id"])["id"].to_pylist()


def test_records_are_the_rows(found: Manifest, tmp_path: Path) -> None:
    dataset = validated(written(disclosed(found), tmp_path))
    records = [record for record, _ in zip(dataset.records("rows-00000"), range(4), strict=False)]
    rows = found.table(["uri", "bytes", "rights", "headers", "fetched_at", "domain"]).slice(0, 4).to_pylist()
    for record, row in zip(records, rows, strict=True):
        assert record["rows-00000/uri"].decode() == row["uri"]
        assert record["rows-00000/bytes"] == row["bytes"]
        assert record["rows-00000/fetched_at"] == row["fetched_at"]
        assert record["rows-00000/image"].size == (48, 32)
        verdicts = [seen["rows-00000/rights/verdict"].decode() for seen in record["rows-00000/rights"]]
        assert verdicts == [seen["verdict"] for seen in row["rights"]]
    assert [r.decode() for r in records[1]["rows-00000/redirects"]] == ["https://a.example/", "https://b.example/"]
    assert records[2]["rows-00000/headers"][0]["rows-00000/headers/value"] == b"noai"


def test_every_column_has_a_type(found: Manifest, tmp_path: Path) -> None:
    described = croissant.metadata(disclosed(found), str(tmp_path))
    fields = {field["name"]: field for field in described["recordSet"][0]["field"]}
    assert list(fields) == schema(4).names
    assert all("dataType" in part for field in fields.values() for part in field.get("subField", [field]))
    assert fields["bytes"]["dataType"] == "cr:Int64"
    assert fields["fetched_at"]["dataType"] == "sc:DateTime"
    assert (fields["embedding"]["dataType"], fields["embedding"]["arrayShape"]) == ("cr:Float16", "4")
    assert fields["image"]["dataType"] == "sc:ImageObject"
    assert [part["name"] for part in fields["rights"]["subField"]] == [
        "signal", "value", "where", "observed_at", "verdict",
    ]  # fmt: skip


def test_a_part_that_was_changed_is_refused_by_its_digest(tmp_path: Path) -> None:
    found = manifest(tmp_path / "m", [web(0), file(0)])
    dataset = validated(written(disclosed(found), tmp_path / "out"))
    part = Path(found.uri, found.info.files[0].name)
    part.write_bytes(part.read_bytes() + b"x")
    with pytest.raises(mlcroissant.GenerationError, match=r"Download\(part-00000.parquet\)") as caught:
        list(dataset.records("rows"))
    assert "is not identical" in str(caught.value.__cause__)


def test_many_parts_are_one_record_set_beside_them(tmp_path: Path) -> None:
    found = manifest(tmp_path / "m", *([web(i), web(i + 100)] for i in range(croissant.FEW + 1)))
    folder = tmp_path / "published"
    folder.mkdir()
    for part in found.info.files:
        shutil.copy(Path(found.uri, part.name), folder / part.name)
    path = written(disclosed(Manifest(str(folder), found.info)), folder)
    dataset = validated(path)
    ids = [record["rows/id"].decode() for record in dataset.records("rows")]
    assert ids == found.table(["id"])["id"].to_pylist()
    described = json.loads(path.read_text())["distribution"]
    assert [entry["sha256"] for entry in described[:-1]] == [part.sha256 for part in found.info.files]
    assert described[0]["contentUrl"] == "part-00000.parquet"
    assert described[0]["contentSize"] == f"{os.path.getsize(folder / 'part-00000.parquet')} B"


def test_a_licence_that_nobody_states_is_called_absent(tmp_path: Path) -> None:
    of = disclosed(manifest(tmp_path / "m", [web(2)]))
    assert croissant.metadata(of, str(tmp_path))["license"][0].startswith("not in the data: ")
    validated(written(of, tmp_path / "out"))


def test_what_it_says_of_itself(found: Manifest, tmp_path: Path) -> None:
    bare = croissant.metadata(disclosed(found), str(tmp_path))
    assert bare["conformsTo"] == ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
    assert bare["license"] == ["https://spdx.org/licenses/CC0-1.0", "https://spdx.org/licenses/CC-BY-4.0"]
    assert bare["rai:dataCollectionTimeFrame"] == ["2026-01-01T00:00:00+00:00", "2026-01-03T11:00:00+00:00"]
    assert "not in the data" in bare["rai:personalSensitiveInformation"][0]
    assert "creator" not in bare
    said = {
        "provider": {"name": "Klar"},
        "dataset": {"licence": "CC-BY-4.0", "url": "https://klar.example/", "published": "2026-02-03"},
        "statements": {"personal_information": "None."},
    }
    full = croissant.metadata(disclosed(found, said), str(tmp_path))
    assert full["license"] == ["CC-BY-4.0"]
    assert full["creator"] == {"@type": "sc:Organization", "name": "Klar"}
    assert full["datePublished"] == "2026-02-03"
    assert full["rai:personalSensitiveInformation"] == ["None."]
    dataset = validated(written(disclosed(found, said), tmp_path))
    assert dataset.metadata.personal_sensitive_information == ["None."]
