"""The chain and the policy: stated captions, what is measured of each, who is asked, and which one is chosen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.captions import (
    Caption,
    CaptionInput,
    CaptionPolicy,
    CaptionsConfig,
    MetadataCaptions,
    TagCaptions,
    TemplateCaptions,
    choose,
)
from curation.captions.language import LANGUAGES, language, words
from curation.captions.stage import embed_texts
from curation.clip import Clip, ClipConfig
from curation.errors import UserError


@pytest.fixture(scope="module")
def clip() -> Clip:
    import torch

    torch.set_num_threads(1)
    return ClipConfig(device="cpu", batch_size=4).build()


def row(embedding: np.ndarray | None = None, embedded: dict[str, str] | None = None, **metadata: str) -> CaptionInput:
    return CaptionInput(metadata=metadata, embedded=embedded or {}, embedding=embedding)


# --- what the source stated ---


def test_the_first_field_that_says_something() -> None:
    captioner = MetadataCaptions()
    rows = [
        row(alt="an alt text", description="a description"),
        row(caption=" \n ", alt="an\n alt\ttext "),
        row(embedded={"description": "from the file", "title": "A title"}),
        row(embedded={"title": "A title"}),
        row(title="stated titles are not captions"),
    ]
    assert captioner(rows) == ["an alt text", "an alt text", "from the file", "A title", None]
    named = MetadataCaptions(fields=("embedded.title", "title"))
    assert named([row(title="b", embedded={"title": "a"}), row(title="b")]) == ["a", "b"]


@pytest.mark.parametrize(
    "boilerplate",
    [
        "OLYMPUS DIGITAL CAMERA",
        "SONY DSC",
        "Created with GIMP",
        "untitled",
        "(null)",
        "N/A",
        "---",
        "<KENOX S630>",
        ".",
    ],
)
def test_what_nobody_wrote_is_not_a_caption(boilerplate: str) -> None:
    said = MetadataCaptions()([row(caption=boilerplate, embedded={"description": "a real one"}), row(alt=boilerplate)])
    assert said == ["a real one", None]
    assert MetadataCaptions()([row(caption=f"{boilerplate} on a table")])[0]


def test_control_characters_and_half_surrogates_never_reach_a_table() -> None:
    assert MetadataCaptions()([row(caption="a\x00b\ud83dc\u0085d\u200cé\U0001f600")]) == ["a b c d\u200cé\U0001f600"]


def test_templates() -> None:
    captioner = TemplateCaptions(text="a drawing of {title} by {embedded.creator}{{}}")
    rows = [
        row(title=" a\n hen", embedded={"creator": "Ann {x}"}),
        row(title="a hen"),
        row(embedded={"creator": "Ann"}),
    ]
    assert captioner(rows) == ["a drawing of a hen by Ann {x}{}", None, None]
    assert TemplateCaptions(text="a drawing")([row()]) == ["a drawing"]


@pytest.mark.parametrize("text", ["{a.b}", "{}", "{0}", "{a!r}", "{a:>9}", "{a[0]}", "{embedded.a.b}", "{a", "a}"])
def test_templates_have_plain_fields(text: str) -> None:
    with pytest.raises(ValidationError):
        TemplateCaptions(text=text)


# --- language and words ---


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Two dogs playing in the snow", "en"), ("a drawing of a red apple", "en"), ("un chat noir sur le toit", "fr"),
        ("ein Hund spielt im Garten", "de"), ("猫が好き", "ja"), ("고양이", "ko"), ("一只红母鸡在草地上", "zh"),
        ("Две собаки играют в снегу", "ru"), ("cat", None), ("a cat", None), ("12 34", None), ("IMG_1234.JPG", None),
        ("", None), ("Mona Lisa", None),
    ],
)  # fmt: skip
def test_languages_that_can_be_known(text: str, code: str | None) -> None:
    assert language(text) == code
    assert language(text) == code  # no state
    assert code is None or code in LANGUAGES


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a red hen", 3), ("", 0), ("...", 0), ("a red, red hen!", 4), ("rock'n'roll well-known 3.5", 3),
        ("一只红母鸡", 3),
        ("猫 cat", 2), ("красная кошка", 2), ("고양이 두 마리", 3), ("แมวดำ", 3),
    ],
)  # fmt: skip
def test_words(text: str, count: int) -> None:
    assert words(text) == count


# --- the policy ---

CAPTIONS = st.lists(
    st.builds(
        Caption,
        text=st.text(min_size=1, max_size=5),
        source=st.sampled_from(["metadata", "coca", "vlm"]),
        language=st.sampled_from([None, "en", "de"]),
        words=st.integers(0, 6),
        score=st.none() | st.floats(-1, 1, width=32),
    ),
    max_size=6,
)
POLICIES = st.builds(
    CaptionPolicy,
    keep=st.integers(1, 3),
    min_score=st.none() | st.floats(-1, 1),
    min_words=st.integers(0, 3),
    max_words=st.none() | st.integers(3, 6),
    languages=st.none() | st.sampled_from([("en",), ("en", "und"), ("de",)]),
    low=st.sampled_from(["keep", "hold", "drop"]),
    missing=st.sampled_from(["keep", "hold", "drop"]),
)


@settings(deadline=None)
@given(captions=CAPTIONS, policy=POLICIES)
def test_the_choice_is_the_first_good_caption(captions: list[Caption], policy: CaptionPolicy) -> None:
    choice = choose(captions, policy)
    good = [caption for caption in captions if policy.accepts(caption)]
    assert choice.found == len(captions)
    assert len(choice.kept) == min(policy.keep, len(good) or len(captions))
    assert choice.caption is (choice.kept[0] if choice.kept else None)
    if good:
        assert list(choice.kept) == good[: policy.keep]
        assert choice.action == "keep"
    elif captions:
        assert choice.action == policy.low
        best = max(-1.0 if caption.score is None else caption.score for caption in captions)
        assert choice.caption is not None
        assert (-1.0 if choice.caption.score is None else choice.caption.score) == best
    else:
        assert choice.action == policy.missing


@settings(deadline=None)
@given(captions=CAPTIONS, policy=POLICIES)
def test_what_is_kept_chooses_the_same_again(captions: list[Caption], policy: CaptionPolicy) -> None:
    first = choose(captions, policy)
    again = choose([Caption(**vars(caption)) for caption in first.kept], policy)
    assert (again.caption, again.kept, again.action) == (first.caption, first.kept, first.action)


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True), ({"min_words": 3}, True), ({"min_words": 4}, False), ({"max_words": 3}, True),
        ({"max_words": 2}, False),
        ({"min_score": 0.25}, True), ({"min_score": 0.26}, False), ({"languages": ["en"]}, True),
        ({"languages": ["de", "und"]}, False),
    ],
)  # fmt: skip
def test_each_limit_counts(changes: dict[str, Any], good: bool) -> None:
    caption = Caption("a red hen", "metadata", "en", 3, 0.25)
    assert CaptionPolicy.model_validate(changes).accepts(caption) is good


def test_unknown_is_a_language_of_its_own_and_no_score_is_not_a_good_one() -> None:
    caption = Caption("hen", "metadata", None, 1, None)
    assert CaptionPolicy(languages=("en", "und")).accepts(caption)
    assert not CaptionPolicy(languages=("en",)).accepts(caption)
    assert not CaptionPolicy(min_score=-1).accepts(caption)


def test_mistakes_of_a_policy() -> None:
    with pytest.raises(ValidationError, match="max_words is below"):
        CaptionPolicy(min_words=5, max_words=4)
    with pytest.raises(UserError, match="'english'") as caught:
        CaptionPolicy(languages=("english",)).check(scored=True)
    assert caught.value.field == "caption_policy.languages"
    with pytest.raises(UserError, match="the job has none") as caught:
        CaptionsConfig(policy=CaptionPolicy(min_score=0.2)).check(None)
    assert caught.value.field == "caption_policy.min_score"
    CaptionsConfig(policy=CaptionPolicy(min_score=0.2, languages=("en", "und"))).check(ClipConfig())


# --- the chain ---


def chain(*captioners: dict[str, Any], **policy: Any) -> CaptionsConfig:
    return CaptionsConfig.model_validate({"captioners": captioners, "policy": policy})


STATED = ({"kind": "metadata"}, {"kind": "template", "text": "a drawing of {title}", "name": "drawing"})


def test_captions_come_in_order_of_preference_and_measured() -> None:
    said = chain(*STATED).build(None)(
        [row(caption="a red hen in the yard", title="hen"), row(), row(title="a red hen")]
    )
    assert [[(c.text, c.source) for c in captions] for captions in said] == [
        [("a red hen in the yard", "metadata"), ("a drawing of hen", "drawing")],
        [],
        [("a drawing of a red hen", "drawing")],
    ]
    assert said[0][0] == Caption("a red hen in the yard", "metadata", "en", 6, None)


def test_the_same_text_stands_once() -> None:
    said = chain(*STATED).build(None)([row(caption="a drawing of  hen", title="hen")])
    assert [(c.text, c.source) for c in said[0]] == [("a drawing of hen", "metadata")]


def test_a_page_is_cut_between_words() -> None:
    (caption,) = chain(*STATED).build(None)([row(caption="words " * 2000)])[0]
    assert len(caption.text) <= 4000
    assert caption.text.endswith(" words")


def test_scores_are_cosines_of_what_is_stored(clip: Clip) -> None:
    stage = chain(*STATED).build(clip)
    vectors = embed_texts(clip, ["a red hen", "a drawing of hen"])
    stored = (vectors[0] * 1.001).astype(np.float16).astype(np.float32)  # float16 is not quite of length one
    captions = stage([row(stored, caption="a red hen", title="hen"), row(caption="a red hen")])
    assert captions[0][0].score == pytest.approx(1, abs=1e-3)
    assert captions[0][1].score == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-3)
    assert captions[1][0].score is None
    assert all(c.score is None or float(np.float32(c.score)) == c.score for told in captions for c in told)
    assert stage([row(np.zeros(clip.dim, np.float32), caption="x")])[0][0].score == 0


@settings(deadline=None, max_examples=15)
@given(cuts=st.lists(st.integers(0, 9), max_size=3), order=st.permutations(range(9)))
def test_neighbours_change_no_bit(clip: Clip, cuts: list[int], order: Sequence[int]) -> None:
    stage = chain(*STATED, {"kind": "tags", "vocabulary": ["hen", "cat", "boat"], "min_confidence": 0.1}).build(clip)
    vectors = embed_texts(clip, [f"thing number {i}" for i in range(9)])
    rows = [row(vectors[i], title=f"hen {i % 4}") if i % 3 else row(vectors[i]) for i in range(9)]
    whole = stage(rows)
    assert {c.source for captions in whole for c in captions} == {"drawing", "tags"}
    shuffled = [rows[i] for i in order]
    edges = [0, *sorted(cuts), 9]
    parts = [captions for a, b in pairwise(edges) for captions in stage(shuffled[a:b])]
    assert parts == [whole[i] for i in order]


def test_a_low_score_is_captioned_again(clip: Clip) -> None:
    tags = {"kind": "tags", "vocabulary": ["hen", "boat"], "min_confidence": 0.1}
    hen = embed_texts(clip, ["a picture of hen"])[0]
    rows = [row(hen, caption="hen"), row(hen, caption="quarterly figures of the finance department")]
    lax, strict = chain(STATED[0], tags).build(clip), chain(STATED[0], tags, min_score=0.6).build(clip)
    assert [[c.source for c in told] for told in lax(rows)] == [["metadata"], ["metadata"]]
    again = strict(rows)
    assert [[c.source for c in told] for told in again] == [["metadata"], ["metadata", "tags"]]
    policy = CaptionPolicy(min_score=0.6, low="hold")
    assert [choose(told, policy).caption.text for told in again] == ["hen", "a picture of hen"]  # type: ignore[union-attr]
    assert choose(lax(rows)[1], policy).action == "hold"
    more = chain(STATED[0], {**tags, "always": True}).build(clip)
    assert [[c.source for c in told] for told in more(rows)] == [["metadata", "tags"]] * 2
    two = chain(STATED[0], tags, keep=2).build(clip)
    assert [[c.source for c in told] for told in two(rows)] == [["metadata", "tags"]] * 2


def test_only_what_changes_the_captions_changes_the_identity() -> None:
    tags = {"kind": "tags", "vocabulary": ["hen", "boat"]}
    stated = chain(*STATED).identity()
    json.dumps(stated)
    assert chain(*STATED, min_score=0.3, keep=2, low="drop").identity() == stated  # all of them are asked anyway
    assert chain(*reversed(STATED)).identity() != stated
    some = chain(*STATED, tags).identity()
    assert chain(*STATED, tags, low="drop", missing="hold").identity() == some
    assert chain(*STATED, tags, min_score=0.3).identity() != some
    assert chain(*STATED, {**tags, "always": True}, min_score=0.3).identity()["policy"] is None
    assert chain(*STATED, {**tags, "vocabulary": ["hen", "ship"]}).identity() != some


# --- tags ---


def test_confidence_is_a_softmax_over_the_vocabulary(clip: Clip) -> None:
    config = TagCaptions(vocabulary=("hen", "boat", "moon"), most=2, min_confidence=0.2, text="{tags}", temperature=3)
    tags = config.build(clip)
    picture = embed_texts(clip, ["a picture of boat"])[0]
    shares = tags.confidences(picture)
    vectors = []
    for word in ("hen", "boat", "moon"):
        mean = embed_texts(clip, [f"a picture of {word}", word]).mean(axis=0)
        vectors.append(mean / np.linalg.norm(mean))
    logits = np.array(vectors) @ picture * float(clip._model.logit_scale.detach().exp()) / 3
    np.testing.assert_allclose(shares, np.exp(logits) / np.exp(logits).sum(), rtol=1e-4)
    assert int(shares.argmax()) == 1
    sure = ", ".join(
        w for s, w in sorted(zip(shares, ("hen", "boat", "moon"), strict=True), reverse=True)[:2] if s >= 0.2
    )
    assert tags([CaptionInput(embedding=picture), CaptionInput()]) == [sure, None]


def test_tags_that_are_not_sure_are_silent(clip: Clip) -> None:
    tags = TagCaptions(vocabulary=("hen", "boat"), min_confidence=1).build(clip)
    assert tags([CaptionInput(embedding=embed_texts(clip, ["hen or boat"])[0])]) == [None]


def test_vocabularies(tmp_path: Any, clip: Clip) -> None:
    path = tmp_path / "words.txt"
    path.write_text("hen\n\n boat \nhen\n")
    assert TagCaptions(vocabulary=str(path)).words() == ("hen", "boat")
    assert TagCaptions(vocabulary=str(path)).identity() == TagCaptions(vocabulary=("hen", "boat")).identity()
    assert len(TagCaptions().words()) > 990
    with pytest.raises(UserError, match="needs two"):
        TagCaptions(vocabulary=("hen", "hen ")).check(clip._config)
    with pytest.raises(UserError, match="cannot be read") as caught:
        chain({"kind": "tags", "vocabulary": str(tmp_path / "none")}).check(ClipConfig())
    assert caught.value.field == "captions.0.vocabulary"
    with pytest.raises(UserError, match="the job has none") as caught:
        chain(*STATED, {"kind": "tags"}).check(None)
    assert caught.value.field == "captions.2.kind"
    for text in ("no place", "{tags} {tags}", "{tags} {title}", "{tags"):
        with pytest.raises(ValidationError, match="exactly one"):
            TagCaptions(text=text)
