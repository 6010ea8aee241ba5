"""The training set: what it takes from a manifest and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import UserError
from curation.manifest import Manifest
from tests.training.conftest import shapes, write_manifest
from training import merkle, randomness
from training.captions import CaptionChoice, CaptionStates, first_captions
from training.data import TrainingSet, check_mix, load, options_of, picture_size
from training.randomness import Purpose
from training.text import TextEncoder


def test_kept_rows_come_in_the_order_of_their_ids(manifest: Manifest, data: TrainingSet) -> None:
    table = manifest.table(["id", "caption"])
    captions = dict(zip(table["id"].to_pylist(), table["caption"].to_pylist(), strict=True))
    assert data.captions == tuple(captions[row] for row in sorted(captions))
    assert data.roster.info.digest == merkle.digest(captions)
    assert data.pictures.shape == (8, 3, 8, 8)
    assert data.licences == {"CC0-1.0": 8}
    picture = dict(shapes(8))[data.captions[0]]
    np.testing.assert_array_equal(data.pictures[0].permute(1, 2, 0).numpy(), picture)


def test_channel_statistics(data: TrainingSet) -> None:
    mean, std = data.source.channel_stats()
    pixels = data.pictures.double() / 127.5 - 1
    torch.testing.assert_close(torch.tensor(mean).double(), pixels.mean(dim=(0, 2, 3)), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        torch.tensor(std).double(), pixels.std(dim=(0, 2, 3), correction=0), rtol=1e-6, atol=1e-6
    )


def test_another_size_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="8 x 8 pixels, not 16 x 16"):
        load(manifest, 16)
    mixed = write_manifest(tmp_path, [*shapes(8), ("wide", np.zeros((8, 10, 3), np.uint8))])
    with pytest.raises(UserError, match="10 x 8 pixels"):
        load(mixed, 8)


def test_nothing_kept_and_damaged_pictures_are_refused(tmp_path: Path) -> None:
    empty = write_manifest(tmp_path / "a", shapes(8), decision="dropped", image=None)
    with pytest.raises(UserError, match="keeps no picture"):
        load(empty)
    for image in (None, {"bytes": b"not a picture", "path": None}):
        broken = write_manifest(tmp_path / str(image is None), shapes(8)[:1], image=image)
        with pytest.raises(UserError, match="cannot be trained on"):
            picture_size(broken)


@pytest.mark.parametrize("cap", [1 << 30, 0], ids=["resident", "encoded batch by batch"])
def test_text_states_are_those_of_the_captions(data: TrainingSet, text: TextEncoder, cap: int) -> None:
    states = CaptionStates(text, CaptionChoice(data.options), cap=cap)
    found = states.lookup(torch.tensor([3, 5, 3]), torch.tensor([False, False, True]), torch.zeros(3).double())
    expected = text.encode([data.captions[3], data.captions[5], ""])
    used = found.states.shape[1]
    assert torch.equal(found.mask, expected.mask[:, :used])
    assert not expected.mask[:, used:].any()
    torch.testing.assert_close(found.states, expected.states[:, :used])
    torch.testing.assert_close(found.pooled, expected.pooled)


# --- several captions of an image ---


def told(caption: str) -> list[dict[str, object]]:
    """What two captioners say of a shape; circles have the second caption only from one of them."""
    words = caption.split()
    captions = [{"text": caption, "source": "metadata"}, {"text": f"{words[1]} things", "source": "metadata"}]
    if words[2] == "square":
        captions.append({"text": f"a box in {words[1]}", "source": "coca"})
    return [{"language": "en", "words": 3, "score": None, **known} for known in captions]


def test_a_mix_reads_each_captioners_first_caption(tmp_path: Path) -> None:
    rich = write_manifest(tmp_path, shapes(8), captions=told)
    mixed, plain = load(rich, caption_mix={"coca": 3, "metadata": 1}), load(rich)
    assert plain.options == tuple(((caption, 1.0),) for caption in plain.captions)
    expected = {"square": (("a box in red", 0.75), ("a red square", 0.25)), "circle": (("a red circle", 1.0),)}
    by_caption = dict(zip(mixed.captions, mixed.options, strict=True))
    assert by_caption["a red square"] == expected["square"]
    assert by_caption["a red circle"] == expected["circle"]
    assert mixed.captions == plain.captions
    assert mixed.roster.info.digest == plain.roster.info.digest  # the same inputs, whatever is said of them
    assert mixed.texts == sorted({*plain.captions, *(f"a box in {c}" for c in ("red", "green", "blue", "yellow"))})


def test_where_no_captioner_of_the_mix_spoke_the_chosen_caption_stands(tmp_path: Path) -> None:
    rich = write_manifest(tmp_path / "new", shapes(8), captions=told)
    only = load(rich, caption_mix={"coca": 1})
    by_caption = dict(zip(only.captions, only.options, strict=True))
    assert by_caption["a blue circle"] == (("a blue circle", 1.0),)
    assert by_caption["a blue square"] == (("a box in blue", 1.0),)
    older = write_manifest(tmp_path / "old", shapes(8), without=("captions",))
    assert load(older, caption_mix={"coca": 1}).options == load(older).options


def test_a_captioner_that_wrote_nothing_is_a_mistake(tmp_path: Path) -> None:
    rich = write_manifest(tmp_path, shapes(8), captions=told)
    check_mix(rich, {"coca": 1, "metadata": 2})
    check_mix(rich, None)
    for refused in (lambda mix: check_mix(rich, mix), lambda mix: load(rich, caption_mix=mix)):
        with pytest.raises(UserError, match="by 'koka'") as caught:
            refused({"koka": 1, "metadata": 1})
        assert caught.value.field == "caption_mix"
        assert "coca, metadata" in str(caught.value)


@given(
    captions=st.lists(st.fixed_dictionaries({"text": st.text(min_size=1), "source": st.sampled_from("abcd")})),
    mix=st.none() | st.dictionaries(st.sampled_from("abcdef"), st.floats(1e-3, 1e3), min_size=1),
)
def test_options_are_shares_of_what_there_is(captions: list[dict[str, str]], mix: dict[str, float] | None) -> None:
    options = options_of("chosen", captions, mix)
    assert sum(share for _, share in options) == pytest.approx(1)
    there = {known["source"] for known in captions} & set(mix or {})
    assert len(options) == max(1, len(there))
    assert there or options == (("chosen", 1.0),)
    assert options == options_of("chosen", captions, dict(reversed((mix or {}).items())) or None)


@pytest.mark.parametrize("cap", [1 << 30, 0], ids=["resident", "encoded batch by batch"])
def test_captions_are_drawn_by_their_shares(text: TextEncoder, cap: int) -> None:
    options = ((("red", 0.2), ("blue", 0.5), ("green", 0.3)), (("red", 1.0),))
    states = CaptionStates(text, CaptionChoice(options), cap=cap)
    draw = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-53, 0.99, 0.5], dtype=torch.float64)
    rows = torch.tensor([0, 0, 0, 0, 0, 0, 1, 0])
    found = states.lookup(rows, torch.tensor([False] * 7 + [True]), draw)
    expected = text.encode(["red", "red", "blue", "blue", "green", "green", "red", ""])
    torch.testing.assert_close(found.pooled, expected.pooled)


def test_draws_follow_the_weights_and_nothing_else(text: TextEncoder) -> None:
    count = 4000
    states = CaptionStates(text, CaptionChoice(((("red", 0.25), ("blue", 0.75)),)))
    red = text.encode(["red"]).pooled[0]

    def reds(first: int, last: int) -> torch.Tensor:
        index = torch.arange(first, last)
        rows, kept = torch.zeros(last - first, dtype=torch.int64), torch.zeros(last - first, dtype=torch.bool)
        found = states.lookup(rows, kept, randomness.uniform(5, Purpose.CAPTION, index))
        return (found.pooled - red).abs().amax(dim=1) < 1e-4

    whole = reds(0, count)
    assert abs(float(whole.float().mean()) - 0.25) < 4 * (0.25 * 0.75 / count) ** 0.5
    assert torch.equal(whole, torch.cat([reds(0, 7), reds(7, 1000), reds(1000, count)]))


# --- what a sample is told does not depend on what else is in the set ---


def test_the_first_captions_are_those_of_the_first_samples(text: TextEncoder, data: TrainingSet) -> None:
    choice = CaptionChoice(data.options)
    for images in (1, 5, 8, 100):
        rows = data.shown(3, torch.arange(images)).tolist()
        assert first_captions(data, choice, 3, images) == sorted({data.captions[row] for row in rows})
    assert set(first_captions(data, choice, 3, 8)) == set(data.captions)


def test_states_of_a_batch_depend_on_its_own_captions_to_the_bit(text: TextEncoder) -> None:
    few = ["a red circle", "a very very very blue square", ""]
    crowd = [*few, *(f"{'very ' * (i % 7)}other {i}" for i in range(40))]
    alone, among = (CaptionStates(text, CaptionChoice([((c, 1.0),) for c in captions])) for captions in (few, crowd))
    for rows, used in (([0, 1], 8), ([0, 0], 5), ([2], 2)):
        index = torch.tensor(rows)
        kept, draw = torch.zeros(len(rows), dtype=torch.bool), torch.zeros(len(rows)).double()
        one, other = alone.lookup(index, kept, draw), among.lookup(index, kept, draw)
        assert one.states.shape[1] == used
        for ours, theirs in ((one.states, other.states), (one.mask, other.mask), (one.pooled, other.pooled)):
            assert torch.equal(ours, theirs)
