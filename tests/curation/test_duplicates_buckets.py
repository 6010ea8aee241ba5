"""The searches on Ray give what one node gives, to the bit, and go on where they were killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from curation.duplicates import CopyInputs, DuplicatesConfig, PerceptualConfig, SemanticConfig, find
from curation.duplicates.buckets import OnRay, _NearHashes, _ScatterHashes, _write_shards
from curation.duplicates.hamming import near_values, plan


def rows(n: int) -> CopyInputs:
    """Pictures of which a third are copies of one kind or another, and one came very often."""
    chance = np.random.default_rng(n)
    source = np.where(chance.random(n) < 0.3, chance.integers(0, n, n), np.arange(n))
    source[chance.random(n) < 0.1] = 0
    hashes = chance.integers(0, 2**64, n, dtype=np.uint64)[source]
    changed = chance.random(n) < 0.5
    hashes ^= np.where(changed, np.uint64(1) << chance.integers(0, 64, n, dtype=np.uint64), np.uint64(0))
    hashes[hashes < 2**62] = 0  # a hash is not spread evenly
    turned = chance.integers(1, 2**64, (n, 7), dtype=np.uint64)
    turned[::4, 2] = hashes[chance.integers(0, n, len(turned[::4]))] ^ np.uint64(1)
    embeddings = chance.normal(size=(n, 16))[source] + 0.1 * chance.normal(size=(n, 16))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    embeddings[::30] = 0
    pixels = np.where(changed, np.arange(n), source)
    file = np.where(chance.random(n) < 0.5, pixels, np.arange(n))
    return CopyInputs(
        np.array([f"{i:064x}" for i in file], "S64"),
        np.array([f"{i:064x}" for i in pixels], "S64"),
        hashes,
        np.zeros((n, 48), np.uint8),
        turned,
        embeddings.astype(np.float16),
    )


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_ray_finds_what_one_node_finds(tmp_path: Path) -> None:
    inputs = rows(4000)
    config = DuplicatesConfig(
        perceptual=PerceptualConfig(turned=True),
        semantic=SemanticConfig(exact_below=100),
        backend="ray",
    )
    expected = find(inputs, config)
    found = find(inputs, config, work=str(tmp_path))
    assert len(expected.a) > 1000
    for kind in (2, 3, 4):
        assert (expected.kind == kind).sum() > 50
    for name in ("same_bytes", "same_pixels", "same_hash", "a", "b", "kind", "similarity"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    values = np.unique(rows(3000).phashes)
    x, y = near_values(values, 3)
    expected = set(zip(np.minimum(x, y).tolist(), np.maximum(x, y).tolist(), strict=True))

    def found() -> set[tuple[int, int]]:
        x, y = OnRay(str(tmp_path)).near_values(values, 3)
        assert len(x) == len(expected)
        return set(zip(np.minimum(x, y).tolist(), np.maximum(x, y).tolist(), strict=True))

    assert found() == expected
    results = sorted(tmp_path.rglob("near-*.npz"))
    assert len(results) == 4 * len(plan(values, 3))
    kept = {file: file.stat().st_mtime_ns for file in results[::2]}
    for file in results[1::2]:
        file.unlink()
    assert found() == expected
    assert {file: file.stat().st_mtime_ns for file in kept} == kept, "what was there is not made again"
    assert sorted(tmp_path.rglob("near-*.npz")) == results


def test_the_tasks_are_plain_functions_of_files(tmp_path: Path) -> None:
    """Without Ray: scattering and searching buckets by hand, in the wrong order."""
    values = np.unique(rows(3000).phashes)
    tables, folder = plan(values, 3), str(tmp_path)
    shards = _write_shards(folder, {"values": values}, 1 << 18)  # 512 to a shard
    assert shards > 2
    for shard in reversed(range(shards)):
        _ScatterHashes(folder, tables, 3)(shard)
    task = _NearHashes(folder, shards, tables, 3, 3, None)
    parts = [task(place) for place in reversed(range(len(tables) << 3))]
    x, y = (np.concatenate([part[name] for part in parts]) for name in ("x", "y"))
    expected = near_values(values, 3)
    assert set(zip(x ^ y, x & y, strict=True)) == set(
        zip(expected[0] ^ expected[1], expected[0] & expected[1], strict=True)
    )
    assert len(x) == len(expected[0])
