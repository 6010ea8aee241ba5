"""Lists of what prompts may not ask for: categories of terms, found as whole words under the usual disguises.

A list is a YAML file:

    categories:
      violence/graphic:               # what answers say; OpenAI's names where they fit
        action: block                 # or flag: drawn, and the answer says so
        terms: [gore, behead*]        # words and phrases; a * at the end stands for any ending
        together:                     # all groups in one prompt, a term of each, in any order
          - [[child, children], [corpse*]]
        except: [gore tex]            # phrases in which a term means something else

A term is found where it stands as a word: with look-alikes, digits or signs in the place of letters (`k1ll`), letters
drawn out to three or more (`kiiill`; two make other words, as of hoping hopping), dots and dashes between them
(`k.i.l.l`), one letter starred out (`k*ll`), or spelt out (`k i l l`). It is not found inside a longer word, nor across
words that are parted wrongly (`ki ll`): harmless sentences have such, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation.errors import UserError
from serving.prompts.fold import fold, readings

DEFAULT = "default"
LOOKALIKES: Mapping[str, str] = {
    **{"0": "o", "1": "il", "2": "z", "3": "e", "4": "a", "5": "s", "6": "bg", "7": "t", "8": "b", "9": "gq"},
    **{"@": "a", "$": "s", "!": "i", "|": "il", "+": "t", "€": "e", "£": "l", "¢": "c", "¥": "y"},
}
"""What may stand for a letter, and for which."""

PromptAction = Literal["block", "flag"]
Group = Annotated[tuple[str, ...], Field(min_length=1)]
_LONGEST = 80  # characters of a prompt that a term may cover, so that no prompt takes longer than its length times this
_STARRED = 4  # letters of a term from which on one of them may be starred out


class Category(BaseModel):
    """The terms of one category, and what is done to a prompt that has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    action: PromptAction = Field("block", description="block refuses the prompt, flag draws it and says so")
    terms: tuple[str, ...] = Field((), description="words and phrases; a * at the end stands for any ending")
    together: tuple[Annotated[tuple[Group, ...], Field(min_length=2)], ...] = Field(
        (), description="entries of two or more groups; a prompt with a term of each group of an entry counts"
    )
    exceptions: tuple[str, ...] = Field((), alias="except", description="phrases in which a term does not count")


class RuleList(BaseModel):
    """The contents of a list file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    categories: dict[str, Category]


@dataclass(frozen=True)
class Match:
    """A rule that a prompt breaks. `rule` is the list, the category and a number: it tells nobody the word."""

    category: str
    rule: str
    action: PromptAction


@dataclass(frozen=True)
class _Found:
    term: int
    start: int
    end: int


@dataclass
class _Node:
    """A letter of terms that begin alike."""

    letter: str
    depth: int
    doubles: bool = False
    """Whether the letter before it is the same."""
    next: dict[str, _Node] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    """Terms that end here."""
    stems: list[int] = field(default_factory=list)
    """Terms that end here and go on with any ending."""


class _State(NamedTuple):
    """How far a text has come in one way of reading it."""

    node: _Node
    signs: int = 0
    """Since the last letter: dots, dashes."""
    starred: bool = False
    """Whether a letter was starred out."""
    more: int = 0
    """How often the last letter came again."""

    def key(self) -> tuple[int, int, bool, int]:
        return (id(self.node), *self[1:])

    def whole(self) -> bool:
        """Whether the last letter may end here: as it is written, or drawn out to three at least."""
        return self.signs == 0 and (self.more == 0 or self.more + self.node.doubles >= 2)


class Terms:
    """Words and phrases, looked for all at once.

    Args:
        terms: each as in a list file, numbered by its place.

    Raises:
        ValueError: for a term of fewer than two letters, or with a * elsewhere than at its end.
    """

    def __init__(self, terms: Iterable[str]) -> None:
        self._root = _Node("", 0)
        for number, term in enumerate(terms):
            self._add(number, term)

    def _add(self, number: int, term: str) -> None:
        words = fold(term.removesuffix("*")).split()
        if sum(character.isalpha() for word in words for character in word) < 2:
            raise ValueError(f"{term!r} has fewer than two letters")
        if not all(word.isalnum() for word in words):
            raise ValueError(f"{term!r}: words of letters and digits, with a * at the end at most")
        node = self._root
        for letter in " ".join(words):
            node = node.next.setdefault(letter, _Node(letter, node.depth + 1, letter == node.letter))
        (node.stems if term.endswith("*") else node.ends).append(number)

    def find(self, text: str) -> Iterator[_Found]:
        """All places of all terms in a folded text."""
        for start, character in enumerate(text):
            before = text[start - 1] if start else " "
            # Of several signs in a row the first alone begins a word, or a prompt of signs would take for ever.
            begins = not before.isalnum() and (character.isalnum() or before not in LOOKALIKES)
            if begins and not character.isspace():
                yield from self._from(text, start)

    def _from(self, text: str, start: int) -> Iterator[_Found]:
        states = [_State(self._root)]
        for place in range(start, min(len(text), start + _LONGEST)):
            reached = (state for before in states for state in _steps(before, text[place]))
            states = list({state.key(): state for state in reached}.values())
            if not states:
                return
            end = place + 1
            bounded = end == len(text) or not text[end].isalnum()
            for state in states:
                terms = [*(state.node.ends if bounded else ()), *state.node.stems]
                if terms and state.whole() and _legible(state, text[start:end]):
                    yield from (_Found(term, start, end) for term in terms)


def _legible(state: _State, text: str) -> bool:
    """Whether a reader would read the term there: numbers are no words, and starred out is one letter of several."""
    return sum(character.isalpha() for character in text) >= 2 and (not state.starred or state.node.depth >= _STARRED)


def _steps(state: _State, character: str) -> Iterator[_State]:
    """Where one more character of the text leads to."""
    node, signs, starred, more = state
    onwards = node.next if state.whole() or signs else {}
    for letter in (character, *LOOKALIKES.get(character, "")):
        if letter in onwards and letter != " ":
            yield _State(onwards[letter], starred=starred)
        if letter == node.letter and signs == 0:
            yield _State(node, starred=starred, more=min(more + 1, 2))
    if character.isalnum() or node.depth == 0:
        return
    if node.letter == " ":
        yield _State(node, starred=starred)
    elif " " in onwards:
        yield _State(onwards[" "], starred=starred)
    if not character.isspace() and signs == 0 and state.whole() and node.letter != " ":
        yield _State(node, 1, starred)
        if character == "*" and not starred:
            yield from (_State(after, starred=True) for letter, after in node.next.items() if letter != " ")


@dataclass(frozen=True)
class _Rule:
    match: Match
    groups: tuple[tuple[int, ...], ...]
    """A term of each makes it broken."""


class Rules:
    """Lists, ready to be asked about prompts. A category's exceptions hold for all lists that have it.

    Args:
        lists: by name.
        actions: by category, instead of the lists' own; `ignore` leaves it out.

    Raises:
        UserError: a term that no prompt could be held against, or an action for a category that no list has.
    """

    def __init__(
        self, lists: Mapping[str, RuleList], actions: Mapping[str, Literal["block", "flag", "ignore"]] | None = None
    ) -> None:
        actions = actions or {}
        self._words: list[str] = []
        self._rules: list[_Rule] = []
        self._exceptions: dict[str, list[int]] = {}
        for name, found in lists.items():
            for category, rules in found.categories.items():
                action = actions.get(category, rules.action)
                if action != "ignore":
                    self._take(name, category, action, rules)
        for category in actions:
            if not any(category in found.categories for found in lists.values()):
                raise UserError(
                    f"no list of prompt rules has a category {category}", field="prompts.actions", remedy="leave it out"
                )
        try:
            self._terms = Terms(self._words)
        except ValueError as error:
            raise UserError(str(error), field="prompts.lists", remedy="correct the term in its list") from None

    def _take(self, name: str, category: str, action: PromptAction, rules: Category) -> None:
        self._exceptions.setdefault(category, []).extend(self._numbers(rules.exceptions))
        entries = [((term,),) for term in rules.terms] + list(rules.together)
        for number, groups in enumerate(entries, 1):
            match = Match(category, f"{name}:{category}:{number}", action)
            self._rules.append(_Rule(match, tuple(self._numbers(group) for group in groups)))

    def _numbers(self, terms: Iterable[str]) -> tuple[int, ...]:
        first = len(self._words)
        self._words.extend(terms)
        return tuple(range(first, len(self._words)))

    def matches(self, prompt: str) -> list[Match]:
        """The rules that a prompt breaks, those that block it first."""
        broken: dict[Match, None] = {}
        for text in readings(fold(prompt)):
            places: dict[int, list[_Found]] = {}
            for found in self._terms.find(text):
                places.setdefault(found.term, []).append(found)
            if places:
                broken |= dict.fromkeys(rule.match for rule in self._rules if self._broken(rule, places))
        return sorted(broken, key=lambda match: match.action != "block")

    def _broken(self, rule: _Rule, places: Mapping[int, list[_Found]]) -> bool:
        pardoned = [found for term in self._exceptions[rule.match.category] for found in places.get(term, ())]

        def counts(found: _Found) -> bool:
            return not any(pardon.start <= found.start and found.end <= pardon.end for pardon in pardoned)

        return all(any(counts(found) for term in group for found in places.get(term, ())) for group in rule.groups)


def read_list(entry: str) -> tuple[str, RuleList]:
    """A list and its name: the one that ships, by `default`, or a file by its path.

    Raises:
        UserError: a file that is not there or is no list.
    """
    path = Path(__file__).with_name("default.yaml") if entry == DEFAULT else Path(entry).expanduser()
    try:
        told: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        return path.stem, RuleList.model_validate(told)
    except OSError as error:
        raise UserError(
            f"the list of prompt rules {entry!r} cannot be read: {error.strerror}",
            field="prompts.lists",
            remedy=f"name a file, or {DEFAULT!r} for the list that ships",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{entry} is not YAML: {error}", field="prompts.lists", remedy="correct the file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{entry}: {where}: {first['msg']}", field="prompts.lists", remedy="see serving/prompts/default.yaml"
        ) from None
