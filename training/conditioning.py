"""What a network is told of a picture: its caption, its class, both, or nothing.

A prompt is a text in every case: a caption; the name of a class; `CLASS | caption`, either half of which may be
missing; or empty. The empty prompt says nothing, which is what guidance steers away from. Classes enter as one-hot
vectors, so that a network of any kind needs no table of its own for them: beside the pooled caption where it has one,
and as one more token that it attends to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from curation.errors import UserError
from training.text import CONFIG_FILE, Conditioning, TextEncoder

CLASSES_FILE = "classes.json"
SEPARATOR = " | "
"""Between the class and the caption of a prompt for a model that is told both."""


class ConditioningConfig(BaseModel):
    """What a network is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["text", "class", "both", "none"] = Field("text", description="captions, classes, both or nothing")
    classes: str = Field(
        "dataset",
        description="the manifest's column whose values are the classes, or captions.NAME: what that captioner wrote",
    )

    @property
    def reads_captions(self) -> bool:
        return self.kind in ("text", "both")

    @property
    def reads_classes(self) -> bool:
        return self.kind in ("class", "both")

    def prompt(self, caption: str, named: str) -> str:
        """What a picture with this caption, of the class of this name, is told; either may be empty."""
        if self.kind == "both":
            return join(named, caption)
        return {"text": caption, "class": named, "none": ""}[self.kind]


CAPTIONS = ConditioningConfig()


def join(named: str, caption: str) -> str:
    """A prompt of class and caption."""
    return f"{named}{SEPARATOR}{caption}" if named or caption else ""


def split(prompt: str) -> tuple[str, str]:
    """The class and the caption of a prompt; without a separator all of it is a caption."""
    named, separator, caption = prompt.partition(SEPARATOR)
    return (named.strip(), caption) if separator else ("", prompt)


class PromptEncoder(Protocol):
    """Prompts to what a network is conditioned on.

    Attributes:
        width: W of states and of the pooled state.
        length: most token positions of a prompt.
        name: what it is, for people.
        classes: names that it knows.
        device: where it encodes.
    """

    width: int
    length: int
    name: str
    classes: tuple[str, ...]
    device: torch.device

    def encode(self, prompts: Sequence[str], *, chunk: int = 1) -> Conditioning:
        """See `TextEncoder.encode`. Raises UserError for a class that is not known."""
        ...

    def tokens(self, prompts: Sequence[str], *, chunk: int = 1) -> tuple[Tensor, Tensor]:
        """See `TextEncoder.tokens`; of captions alone."""
        ...

    def caption_of(self, prompt: str) -> str:
        """See `TextEncoder.caption_of`."""
        ...

    def told(self, prompts: Sequence[str], states: Tensor, mask: Tensor) -> Conditioning:
        """See `TextEncoder.told`."""
        ...

    def measure(self, captions: Sequence[str]) -> None:
        """See `TextEncoder.measure`."""
        ...

    def save(self, folder: Path) -> None:
        """Writes a folder that `load` reads."""
        ...

    def digest(self) -> str:
        """sha256 of what was loaded, without what was measured since."""
        ...


class ClassEncoder:
    """Classes as one-hot vectors, alone or behind the states of captions.

    A prompt's token states are (the class's, where there is one among `classes`; then the caption's), each of width
    W = caption's width + number of classes, with zeros where the other one stands. With neither, it is one state of
    zeros, and W is 1.
    """

    def __init__(self, classes: Sequence[str], text: TextEncoder | None = None) -> None:
        self.classes = tuple(classes)
        self.text = text
        self._told = 0 if text is None else text.width
        self.width = max(self._told + len(self.classes), 1)
        self.length = 1 + (0 if text is None else text.length)
        self.name = "none" if not classes else f"{len(classes)} classes"
        if text is not None:
            self.name = f"{self.name}, {text.name}"
        self.device = torch.device("cpu") if text is None else text.device
        self._number = {name: i for i, name in enumerate(self.classes)}

    def encode(self, prompts: Sequence[str], *, chunk: int = 1) -> Conditioning:
        """Token states (N, L, W), mask (N, L) and pooled states (N, W)."""
        return self.told(prompts, *self.tokens([self.caption_of(prompt) for prompt in prompts], chunk=chunk))

    def tokens(self, prompts: Sequence[str], *, chunk: int = 1) -> tuple[Tensor, Tensor]:
        """See `TextEncoder.tokens`; without a tower there are none."""
        if self.text is None:
            return torch.zeros(len(prompts), 0, 0), torch.zeros(len(prompts), 0, dtype=torch.bool)
        return self.text.tokens(prompts, chunk=chunk)

    def caption_of(self, prompt: str) -> str:
        """What of a prompt the tower reads, where there is one."""
        return "" if self.text is None else split(prompt)[1]

    def told(self, prompts: Sequence[str], states: Tensor, mask: Tensor) -> Conditioning:
        """See `TextEncoder.told`."""
        parts = [split(prompt) if self.text is not None else (prompt, "") for prompt in prompts]
        named = torch.zeros(len(parts), self.width, device=self.device)
        for row, (name, _) in enumerate(parts):
            if name:
                named[row, self._told + self._class(name)] = 1
        # the place of a class is always there, so that a batch of none is well-formed; without a class it is zeros
        first, there = named[:, None], torch.ones(len(parts), 1, dtype=torch.bool, device=self.device)
        if self.text is None:
            return Conditioning(first, there, named)
        told = self.text.told([caption for _, caption in parts], states, mask)
        wider = (0, len(self.classes))
        return Conditioning(
            torch.cat([first, torch.nn.functional.pad(told.states, wider)], dim=1),
            torch.cat([there, told.mask], dim=1),
            named + torch.nn.functional.pad(told.pooled, wider),
        )

    def _class(self, name: str) -> int:
        try:
            return self._number[name]
        except KeyError:
            some = ", ".join(self.classes[:8]) + (", …" if len(self.classes) > 8 else "")
            raise UserError(
                f"the model knows no class {name!r}",
                field="prompt",
                remedy=f"use one of its {len(self.classes)} classes ({some}) or an empty prompt"
                if self.classes
                else "it draws without being told anything: use an empty prompt",
            ) from None

    def measure(self, captions: Sequence[str]) -> None:
        """Takes the statistics of the captions' states, where it has any."""
        if self.text is not None:
            self.text.measure(sorted({split(prompt)[1] for prompt in captions}))

    def save(self, folder: Path) -> None:
        """The text tower's files, where there is one, and the names of the classes."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.text is not None:
            self.text.save(folder)
        (folder / CLASSES_FILE).write_text(json.dumps(list(self.classes)), encoding="utf-8")

    def digest(self) -> str:
        """sha256 of the tower, where there is one, and of the classes."""
        tower = "" if self.text is None else self.text.digest()
        return hashlib.sha256(json.dumps([tower, self.classes]).encode()).hexdigest()


def encoder(
    config: ConditioningConfig, tower: Path | None, classes: Sequence[str], device: torch.device | str = "cpu"
) -> PromptEncoder:
    """What a new model is conditioned by.

    Args:
        tower: the text tower's folder; needed where captions are read.
        classes: of the training set.
    """
    text: TextEncoder | None = None
    if config.reads_captions:
        assert tower is not None, "the launcher exports it"
        text = TextEncoder(tower, device)
    if text is not None and not config.reads_classes:
        return text
    return ClassEncoder(classes if config.reads_classes else (), text)


def load(folder: Path, device: torch.device | str = "cpu") -> PromptEncoder:
    """Reads what `save` wrote.

    Raises:
        UserError: files missing or damaged.
    """
    names = folder / CLASSES_FILE
    if not names.is_file():
        return TextEncoder(folder, device)
    try:
        classes = [str(name) for name in json.loads(names.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise UserError(f"{names} is damaged: {error}", field="model", remedy="restore the bundle") from None
    has_tower = (folder / CONFIG_FILE).is_file()
    return ClassEncoder(classes, TextEncoder(folder, device) if has_tower else None)
