"""CoCa: a tiny one with random weights, loaded as any open_clip model is, and the search that decodes it."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from curation.captions import CaptionInput, CaptionsConfig, CocaCaptions
from curation.captions.coca import Coca, beam_search
from curation.clip import ClipConfig, _open_clip
from curation.errors import UserError

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
MODEL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "attentional_pool": True,
        "attn_pooler_heads": 2, "output_tokens": True,
    },
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
    "custom_text": True,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CoCa as open_clip saves one, with weights wild enough that pictures and prefixes matter."""
    _open_clip()
    from open_clip.coca_model import CoCa
    from safetensors.torch import save_file

    model = CoCa(**{name: value for name, value in MODEL.items() if name != "custom_text"})
    wild = torch.Generator().manual_seed(0)
    state = {
        name: value if value.ndim == 0 or "ln_" in name else torch.randn(value.shape, generator=wild) * 0.3
        for name, value in sorted(model.state_dict().items())
    }
    path = tmp_path_factory.mktemp("coca") / "tiny"
    path.mkdir()
    save_file({name: value.contiguous() for name, value in state.items()}, path / "open_clip_model.safetensors")
    about = {"model_cfg": MODEL, "preprocess_cfg": {"size": [32, 32], "mean": [0.5] * 3, "std": [0.2] * 3}}
    (path / "open_clip_config.json").write_text(json.dumps(about))
    return path


def config(folder: Path, **changes: Any) -> CocaCaptions:
    settings = {"model": str(folder), "batch_size": 4, "beams": 3, "max_tokens": 8, "min_tokens": 2}
    return CocaCaptions.model_validate({**settings, **changes})


def picture(seed: int) -> CaptionInput:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8).repeat(20, 0).repeat(20, 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return CaptionInput(picture=buffer.getvalue())


@pytest.fixture(scope="module")
def coca(folder: Path) -> Coca:
    return config(folder).build(None)


def test_what_it_writes_depends_on_the_picture_alone(coca: Coca) -> None:
    rows = [picture(seed) for seed in range(6)]
    said = coca(rows)
    assert len(set(said)) >= 4  # the tiny one takes some for the same
    assert all(isinstance(text, str) and text and "<" not in text for text in said)
    again = coca([rows[5], CaptionInput(), rows[2]])
    assert again == [said[5], None, said[2]]


def test_greedy_decoding_is_open_clips_own_model_step_by_step(folder: Path) -> None:
    """Against `CoCa.forward`, which training uses: one picture, the likeliest token each time."""
    greedy = config(folder, beams=1, batch_size=1, min_tokens=0).build(None)
    open_clip = _open_clip()
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    row = picture(3)
    assert row.picture is not None
    # 32 x 32 pixels, which both leave as they are
    pixels = np.array(Image.open(io.BytesIO(row.picture)).resize((32, 32), Image.Resampling.NEAREST))
    tokens = [tokenizer.sot_token_id]
    with torch.no_grad():
        while len(tokens) < 9 and tokens[-1] != tokenizer.eot_token_id:
            image = preprocess(Image.fromarray(pixels))[None]
            logits = model(image, torch.tensor([tokens]), output_labels=False)["logits"][0, -1]
            logits[tokenizer.sot_token_id] = -torch.inf
            tokens.append(int(logits.argmax()))
    assert greedy.describe(pixels[None]) == [greedy._text(tokens)]


def test_a_model_that_is_the_jobs_clip_is_loaded_once(folder: Path) -> None:
    clip = ClipConfig(model=str(folder), device="cpu").build()
    assert config(folder, device="cpu").build(clip)._clip is clip
    half = ClipConfig(model=str(folder), device="cpu", precision="bf16").build()
    assert config(folder, device="cpu").build(half)._clip is not half
    other = ClipConfig(device="cpu").build()
    assert config(folder, device="cpu").build(other)._clip is not other


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_writes_too_and_for_each_picture_the_same(folder: Path, precision: str) -> None:
    lower = config(folder, precision=precision).build(None)
    rows = [picture(seed) for seed in range(5)]
    said = lower(rows)
    assert len(set(said)) >= 2
    assert lower(rows[3:]) == said[3:]


def test_the_identity_is_of_the_weights_and_the_decoding(folder: Path) -> None:
    base = config(folder).identity()
    assert base["weights"].startswith("tiny@")
    json.dumps(base)
    assert config(folder, beams=2).identity() != base
    assert config(folder, device="cpu").identity() == base


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"model": "coca_ViT-B-31", "weights": "x"}, "model", "no CLIP is called"),
        ({"model": "coca_ViT-B-32", "weights": None}, "weights", "would be random"),
        ({"model": "coca_ViT-B-32", "weights": "laion3b"}, "weights", "no weights 'laion3b'"),
        ({"model": "embedded"}, "model", "not a CoCa"),
        ({"model": "ViT-B-32", "weights": "openai"}, "model", "not a CoCa"),
        ({"model": "./nowhere"}, "model", "holds no"),
    ],
)
def test_mistakes_are_found_before_anything_starts(changes: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        CaptionsConfig(captioners=(CocaCaptions.model_validate(changes),)).check(None)
    assert caught.value.field == f"captions.0.{field}"


def test_pretrained_tags_are_known() -> None:
    CocaCaptions(model="coca_ViT-L-14", weights="mscoco_finetuned_laion2b_s13b_b90k").check(None)


# --- the search, on a chain whose next token depends on the last one ---

V, END = 4, 3


def chain(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(V, V)).astype(np.float32)) * 2


def found(table: torch.Tensor, beams: int, least: int, most: int) -> list[int]:
    start = torch.zeros((1, 1), dtype=torch.int64)
    rows = beam_search(
        lambda tokens: table[tokens[:, -1]].clone(), start, end=END, beams=beams, min_tokens=least, max_tokens=most
    )
    tokens: list[int] = rows[0].tolist()
    while len(tokens) > 1 and tokens[-1] == tokens[-2] == END:
        tokens.pop()
    return tokens


def mean(table: torch.Tensor, tokens: Sequence[int], least: int) -> float:
    """The mean log-probability of a sentence's tokens."""
    logs = []
    for step, (before, after) in enumerate(itertools.pairwise(tokens)):
        logits = table[before].clone()
        if step < least:
            logits[END] = -torch.inf
        logs.append(float(logits.log_softmax(0)[after]))
    return math.fsum(logs) / len(logs)


def sentences(least: int, most: int) -> Iterator[tuple[int, ...]]:
    """All that there are: ended within `most` tokens but not before `least`, or cut off there."""
    for length in range(1, most + 1):
        for tail in itertools.product(range(V), repeat=length):
            if (tail.index(END) == length - 1 >= least) if END in tail else length == most:
                yield (0, *tail)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), least=st.integers(0, 2), most=st.integers(3, 4))
@example(seed=917, least=0, most=3)  # two sentences of the same tokens in another order: as likely
def test_enough_beams_find_the_best_sentence(seed: int, least: int, most: int) -> None:
    table, possible = chain(seed), list(sentences(least, most))
    best = tuple(found(table, V**most, least, most))
    assert best in possible
    assert mean(table, best, least) == pytest.approx(max(mean(table, tokens, least) for tokens in possible), abs=1e-5)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), least=st.integers(0, 3))
def test_one_beam_takes_the_likeliest_token(seed: int, least: int) -> None:
    table, tokens = chain(seed), [0]
    while len(tokens) < 7 and tokens[-1] != END:
        logits = table[tokens[-1]].clone()
        if len(tokens) <= least:
            logits[END] = -torch.inf
        tokens.append(int(logits.argmax()))
    assert found(table, 1, least, 6) == tokens


def test_sentences_are_searched_each_for_itself() -> None:
    tables = torch.stack([chain(seed) for seed in range(5)])

    def following(tokens: torch.Tensor) -> torch.Tensor:
        which = torch.arange(5).repeat_interleave(3)
        return tables[which, tokens[:, -1]].clone()

    together = beam_search(
        following, torch.zeros((5, 1), dtype=torch.int64), end=END, beams=3, min_tokens=1, max_tokens=6
    )
    for row, table in zip(together.tolist(), tables, strict=True):
        alone = found(table, 3, 1, 6)
        assert row[: len(alone)] == alone
        assert set(row[len(alone) :]) <= {END}
