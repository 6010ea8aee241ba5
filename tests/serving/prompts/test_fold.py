"""What reads alike folds alike, and folding twice is folding once."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.prompts.fold import fold, readings


@settings(deadline=None)
@given(st.text(max_size=60))
def test_folding_is_idempotent(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_the_form_of_the_text_does_not_matter(text: str) -> None:
    """NFC and NFD of a text are the same text; they fold alike."""
    assert fold(unicodedata.normalize("NFC", text)) == fold(unicodedata.normalize("NFD", text))


@settings(deadline=None)
@given(st.text(st.sampled_from("abc XYZ09-"), max_size=30))
def test_plain_ascii_only_loses_its_case(text: str) -> None:
    assert fold(text) == text.lower()


@settings(deadline=None)
@given(st.text(st.sampled_from("abcdefgh"), min_size=1, max_size=12), st.data())
def test_what_is_not_seen_does_not_count(word: str, data: st.DataObject) -> None:
    unseen = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u0301\u0336\u20dd\u202e\ufe0f\U000e0041"
    parts = [letter + data.draw(st.text(st.sampled_from(unseen), max_size=3)) for letter in word]
    assert fold("".join(parts)) == word


@pytest.mark.parametrize(
    "written",
    ["Weapon", "ＷＥＡＰＯＮ", "𝔴𝔢𝔞𝔭𝔬𝔫", "𝐖𝐞𝐚𝐩𝐨𝐧", "ⓦⓔⓐⓟⓞⓝ", "🅆🄴🄰🄿🄾🄽", "🆆🅴🅰🅿🅾🅽", "ᴡᴇᴀᴘᴏɴ", "шеароп",
     "wéàpôn", "w̷e̷a̷p̷o̷n̷", "ωєαρση"],
)  # fmt: skip
def test_a_word_in_disguise(written: str) -> None:
    assert fold(written) == "weapon"


def test_white_space_of_every_kind_is_a_space() -> None:
    assert fold("a\u00a0b\u3000c\td\ne\u2003f") == "a b c d e f"


def test_other_scripts_stay_what_they_are() -> None:
    assert fold("猫 キツネ") == fold("猫 キツネ").strip() == unicodedata.normalize("NFKD", "猫 キツネ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red apple", ["a red apple"]),
        ("k i l l it", ["k i l l it", "kill it"]),
        ("i k i l l", ["i k i l l", "ikill", "i kill"]),
        ("t e n  m e n", ["t e n  m e n", "ten  men"]),
    ],
)
def test_words_that_are_spelt_out_are_joined(text: str, expected: list[str]) -> None:
    assert readings(text) == expected
