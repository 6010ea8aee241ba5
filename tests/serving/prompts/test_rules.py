"""A listed word is found in every disguise, and a word that only contains it is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from curation.errors import UserError
from serving.prompts.rules import LOOKALIKES, Category, RuleList, Rules, read_list

WORDS = ("bludgeon", "assassin", "flail", "gun", "shiv")


def rules(**categories: Category) -> Rules:
    return Rules({"own": RuleList(categories=categories)})


WEAPONS = rules(weapon=Category.model_validate({"terms": WORDS, "except": ["assassin bug", "gun metal", "staple gun"]}))


def found(prompt: str, asked: Rules = WEAPONS) -> set[str]:
    return {match.category for match in asked.matches(prompt)}


def _leet(letter: str) -> list[str]:
    return [sign for sign, letters in LOOKALIKES.items() if letter in letters]


@st.composite
def disguised(draw: st.DrawFn) -> str:
    """A listed word as somebody may write it who does not want it to be found, still legible."""
    word = draw(st.sampled_from(WORDS))
    plain = draw(st.sets(st.integers(0, len(word) - 1), min_size=2))
    letters = []
    for place, letter in enumerate(word):
        written = letter if place in plain else draw(st.sampled_from([letter, letter.upper(), *_leet(letter)]))
        if written.isalpha() and draw(st.booleans()):
            written = draw(st.sampled_from([written * 3, written * 5, written + "\u200b", written + "\u0307"]))
        letters.append(written)
    glue = draw(st.sampled_from(["", "", ".", "-", "_", "·"]))
    return glue.join(letters)


@settings(deadline=None)
@example("$hiv", "no,", "")
@given(
    disguised(),
    st.sampled_from(["", "a ", "the big ", "(", "no,", "a;", "…"]),
    st.sampled_from(["", " here", ", red", ")", "?"]),
)
def test_a_word_in_disguise_is_found(word: str, before: str, after: str) -> None:
    assert found(before + word + after) == {"weapon"}


@settings(deadline=None)
@given(
    st.sampled_from(WORDS),
    st.text(st.sampled_from("bcdefhkmnprtvwz"), max_size=4),
    st.text("bcdefhkmprtvwz", max_size=4),
)
def test_a_word_that_contains_it_is_not(word: str, before: str, after: str) -> None:
    assume(before or after)
    # Letters that go on as the word begins or ends would be the word, drawn out.
    assume(not before.endswith(word[0]) and not after.startswith(word[-1]))
    assume(before + word + after not in WORDS)
    assert found(before + word + after) == set()


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_text_can_be_asked_about(text: str) -> None:
    WEAPONS.matches(text)


@pytest.mark.parametrize(
    "prompt", ["g u n", "a g u n", "i like g u n s and a g u n", "sh*v", "a  s h i v  here", "ＧＵＮ", "gυп"]
)
def test_more_disguises(prompt: str) -> None:
    assert found(prompt) == {"weapon"}


@pytest.mark.parametrize(
    "prompt",
    [
        "begun", "gunther", "shiver", "g*n", "gu n", "g, u and n", "900 + 6 = 906", "the gunn family",
        "an assassin bug on a leaf", "gun metal grey", "a staple gun", "GUN-METAL", "b e g u n",
    ],
)  # fmt: skip
def test_harmless_prompts(prompt: str) -> None:
    assert found(prompt) == set()


def test_an_exception_pardons_its_own_place_only() -> None:
    assert found("an assassin bug and an assassin") == {"weapon"}
    assert found("a staple gun and a gun") == {"weapon"}


def test_an_exception_of_one_list_holds_for_the_others() -> None:
    first = RuleList(categories={"weapon": Category(terms=("gun",))})
    second = RuleList(categories={"weapon": Category.model_validate({"except": ["gun dog"]})})
    assert found("a gun dog", Rules({"a": first})) == {"weapon"}
    assert found("a gun dog", Rules({"a": first, "b": second})) == set()


def test_phrases_and_stems() -> None:
    asked = rules(x=Category(terms=("pipe bomb", "behead*")))
    assert found("a pipe  bomb", asked) == found("a PIPE-B0MB", asked) == found("beheading", asked) == {"x"}
    assert (
        found("a pipe and a bomb", asked) == found("pipe bomber", asked) == found("the bee headed home", asked) == set()
    )


def test_groups_count_together_only() -> None:
    asked = rules(x=Category(together=((("child", "kid"), ("knife", "knives")),)))
    assert found("a knife held by a child", asked) == found("knives, kid", asked) == {"x"}
    assert found("a child", asked) == found("a knife", asked) == set()


def test_what_blocks_comes_first_and_rules_do_not_tell_the_word() -> None:
    asked = rules(a=Category(action="flag", terms=("gun",)), b=Category(terms=("shiv", "gun")))
    matches = asked.matches("a gun")
    assert [(match.action, match.rule) for match in matches] == [("block", "own:b:2"), ("flag", "own:a:1")]


def test_actions_by_category() -> None:
    lists = {"own": RuleList(categories={"weapon": Category(terms=("gun",))})}
    assert [match.action for match in Rules(lists, {"weapon": "flag"}).matches("gun")] == ["flag"]
    assert Rules(lists, {"weapon": "ignore"}).matches("gun") == []
    with pytest.raises(UserError, match="has a category"):
        Rules(lists, {"wepon": "flag"})


@pytest.mark.parametrize("term", ["a", "*gun", "123", "gun*fire", "", "gun, shiv"])
def test_a_term_that_cannot_be_found_is_refused(term: str) -> None:
    with pytest.raises(UserError) as caught:
        rules(x=Category(terms=(term,)))
    assert caught.value.field == "prompts.lists"


def test_the_list_that_ships_blocks_what_it_is_for_and_no_emoji() -> None:
    emoji = pytest.importorskip("emoji")
    shipped = Rules(dict([read_list("default")]))
    names = [known["en"].strip(":").replace("_", " ") for known in emoji.EMOJI_DATA.values()]
    assert [name for name in names if shipped.matches(name)] == []
    for harmless in ("Scunthorpe", "Penistone", "a rapping dragon", "a naked mole rat with its babies", "oilseed rape"):
        assert shipped.matches(harmless) == []
    assert shipped.matches("a nude in oil")[0].action == "flag"
    assert found("n4ked kids", shipped) == {"nudity", "sexual/minors"}
    assert found("𝓹𝓸𝓻𝓷", shipped) == {"sexual"}


def test_a_list_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "house.yaml").write_text("categories: {brands: {action: flag, terms: [acme]}}")
    name, own = read_list(str(tmp_path / "house.yaml"))
    assert Rules({name: own}).matches("an ACME anvil")[0].rule == "house:brands:1"


@pytest.mark.parametrize(
    "text", ["categories: [", "terms: [a]", "categories: {a: {actoin: block}}", "categories: {a: {together: [[[ab]]]}}"]
)
def test_a_list_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_list(str(tmp_path / "bad.yaml"))
    assert caught.value.field == "prompts.lists"


def test_a_list_that_is_not_there() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_list("./nowhere.yaml")
