"""Tensors in pieces: any block is found again, of any piece, and put together they are what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from training import pieces
from training.pieces import INDEX_FILE, Header, Index, Piece, Stored


@given(st.data())
def test_any_block_of_a_piece_is_what_slicing_gives(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    size = data.draw(st.lists(st.integers(1, 5), max_size=4))
    tensor = torch.randn(size)
    first = [data.draw(st.integers(0, side - 1)) for side in size]
    sides = [data.draw(st.integers(1, side - at)) for side, at in zip(size, first, strict=True)]
    file = tmp_path_factory.mktemp("pieces") / "part.safetensors"
    safetensors.torch.save_file({"before": torch.ones(7), "it": tensor}, file)
    stored = pieces.index_of(str(file.parent), [file.name]).tensors["part/it"]
    with file.open("rb") as stream:
        block = pieces.read(stream, stored.pieces[0], stored.torch_dtype, first, sides)
    assert torch.equal(block, tensor[tuple(slice(at, at + n) for at, n in zip(first, sides, strict=True))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_pieces_are_put_together(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor, step = torch.randn(5, 3).to(dtype), torch.tensor(3.0)
    held: list[Piece] = []
    for worker, rows in enumerate((slice(0, 2), slice(2, 5))):
        content = safetensors.torch.save({"weights/a": tensor[rows].contiguous(), "optimizer/step.a": step})
        (tmp_path / f"{worker}.safetensors").write_bytes(content)
        name, size, start = Header.of(content).tensors["weights/a"]
        held.append(Piece(file=f"{worker}.safetensors", start=start, offset=(rows.start, 0), size=size))
    last = Header.of(content).tensors["optimizer/step.a"]
    scalar = Piece(file="1.safetensors", start=last[2], offset=(), size=())
    index = Index(
        tensors={
            "weights/a": Stored(dtype=name, size=(5, 3), pieces=tuple(held)),
            "optimizer/step.a": Stored(dtype="F32", size=(), pieces=(scalar,)),
        }
    )
    (tmp_path / INDEX_FILE).write_text(index.model_dump_json())
    files = [INDEX_FILE, "0.safetensors", "1.safetensors"]
    found = pieces.read_whole(str(tmp_path), files)
    assert torch.equal(found["weights"]["a"], tensor)
    assert found["weights"]["a"].dtype == dtype
    assert float(found["optimizer"]["step.a"]) == 3.0
    assert set(pieces.read_whole(str(tmp_path), files, "weights")) == {"weights"}


def test_a_file_that_ends_too_soon_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "part.safetensors"
    safetensors.torch.save_file({"it": torch.ones(8)}, file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match="too short"):
        pieces.read_whole(str(tmp_path), [file.name])
