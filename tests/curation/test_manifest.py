"""The manifest contract: digests that see values only, publishing whole or not at all, refusals that say why."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import UserError
from curation.manifest import (
    ClipInfo,
    Decision,
    InputsInfo,
    Manifest,
    ManifestInfo,
    digest_rows,
    manifest_id,
    now,
    publish,
    schema,
    write_part,
)

DIM = 4


def rows(*names: str, **changes: Any) -> pa.Table:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    base = {"embedding": [0.0] * DIM, "decision": "kept", "reason": "passed", "fetched_at": at, "phash": 2**64 - 1}
    evidence = [{"signal": "licence", "value": "CC0-1.0", "where": "metadata", "observed_at": at, "verdict": "allow"}]
    return pa.Table.from_pylist(
        [{"id": n, "uri": n, "rights": evidence, **base, **changes} for n in names], schema=schema(DIM)
    )


def published(output: Path, *tables: pa.Table) -> Manifest:
    staging = output / ".work" / "staging"
    written = [write_part(f"{staging}/part-{i:05d}.parquet", t) for i, t in enumerate(tables)]
    total = sum(t.num_rows for t in tables)
    info = ManifestInfo(
        id=manifest_id({}, [digest for _, digest in written]),
        name="test",
        created_at=now(),
        code_version="0",
        job={},
        clip=ClipInfo(name="none", dim=DIM),
        inputs=InputsInfo.of(uri for t in tables for uri in t["uri"].to_pylist()),
        rows=total,
        counts={"kept": total},
        reasons={"passed": total},
        rights=[],
        files=[part for part, _ in written],
    )
    return publish(str(staging), str(output), info)


def test_a_published_manifest_reads_back(tmp_path: Path) -> None:
    made = published(tmp_path, rows("a", "b"), rows("c"))
    found = Manifest.open(str(tmp_path))
    assert found.id == made.id
    assert found.table(["uri"])["uri"].to_pylist() == ["a", "b", "c"]
    assert found.table(decision=Decision.DROPPED).num_rows == 0
    found.verify()
    assert pq.read_table(Path(found.uri) / "part-00001.parquet").equals(rows("c"))


def test_the_same_rows_are_the_same_bytes_and_publishing_twice_changes_nothing(tmp_path: Path) -> None:
    first = published(tmp_path / "a", rows("a"))
    again = published(tmp_path / "a", rows("a"))
    other = published(tmp_path / "b", rows("a"))
    assert first.info == again.info
    assert (first.id, first.info.files) == (other.id, other.info.files)
    assert not (tmp_path / "a" / ".work" / "staging").exists()


names = st.lists(st.text(max_size=5), min_size=1, max_size=8)


@given(names, st.integers(0, 8))
def test_the_digest_sees_values_not_chunks(values: list[str], cut: int) -> None:
    whole = rows(*values)
    parts = pa.concat_tables([whole.slice(0, cut), whole.slice(cut)])
    assert digest_rows(whole) == digest_rows(parts)
    assert digest_rows(whole) == digest_rows(rows("x", *values).slice(1))


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"fetched_at": None}, True),
        ({"rights": [{"signal": "licence", "value": "CC0-1.0", "where": "metadata", "verdict": "allow"}]}, True),
        ({"rights": [{"signal": "licence", "value": "CC0-1.0", "where": "metadata", "verdict": "deny"}]}, False),
        ({"rights": []}, False),
        ({"title": ""}, False),
        ({"phash": 0}, False),
        ({"phash": None}, False),
        ({"embedding": [0.0, 0.0, 0.0, 1.0]}, False),
        ({"image": {"bytes": b"", "path": None}}, False),
        ({"safety": []}, False),
    ],
)
def test_the_digest_leaves_out_times_of_observation_only(changes: Any, same: bool) -> None:
    assert (digest_rows(rows("a", "b")) == digest_rows(rows("a", "b", **changes))) == same


@given(st.lists(st.text(max_size=3), min_size=2, max_size=4))
def test_moving_text_between_cells_changes_the_digest(values: list[str]) -> None:
    moved = [values[0] + values[1][:1], values[1][1:], *values[2:]]
    assert (digest_rows(rows(*values)) == digest_rows(rows(*moved))) == (values == moved)


def test_what_is_no_manifest_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no manifest at"):
        Manifest.open(str(tmp_path))
    made = published(tmp_path, rows("a"))
    info = Path(made.uri) / "manifest.json"
    raw = json.loads(info.read_text())
    info.write_text(json.dumps(raw | {"schema_version": 99}))
    with pytest.raises(UserError, match="schema version 99"):
        Manifest.open(made.uri)
    info.write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        Manifest.open(made.uri)
    info.write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(UserError, match=r"manifest\.json"):
        Manifest.open(made.uri)


def test_a_changed_or_missing_file_is_noticed(tmp_path: Path) -> None:
    made = published(tmp_path, rows("a"))
    part = Path(made.uri) / "part-00000.parquet"
    pq.write_table(rows("b"), part)
    with pytest.raises(UserError, match="not what was published"):
        made.verify()
    part.unlink()
    with pytest.raises(UserError, match="is missing"):
        made.verify()
