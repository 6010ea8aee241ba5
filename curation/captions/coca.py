"""Captions by CoCa: open_clip's models that write what they see (Yu et al. 2022, arXiv 2205.01917).

open_clip's own `generate` needs a class that transformers no longer has, draws by chance outside its beam search, and
asks for that library to begin with; so the decoding is here, on open_clip's model and tokenizer.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from curation.captions.captioner import CaptionInput, Named, Said
from curation.clip import Clip, ClipConfig, _open_clip
from curation.errors import UserError
from curation.images import centre

if TYPE_CHECKING:
    from torch import Tensor

_CONFIG_FILE = "open_clip_config.json"


class CocaCaptions(Named):
    """A CoCa and how it decodes. Everything is fixed, so that the same picture gets the same words.

    A job whose `clip` is the same model loads it once.
    """

    kind: Literal["coca"] = "coca"
    model: str = Field("coca_ViT-L-14", description='an open_clip CoCa, a folder of one, or "hf-hub:org/name"')
    weights: str | None = Field(
        None, description="pretrained tag, such as mscoco_finetuned_laion2b_s13b_b90k, or a path; null for the others"
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:1; auto: a GPU where there is one"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the model's numbers")
    batch_size: int = Field(16, ge=1, le=1024, description="pictures described at a time")
    beams: int = Field(4, ge=1, le=32, description="of beam search; 1 takes the likeliest token each time")
    min_tokens: int = Field(5, ge=0, le=70, description="tokens of a caption at least")
    max_tokens: int = Field(30, ge=1, le=75, description="tokens of a caption at most; a longer one is cut off")
    always: bool = Field(False, description="asked also where there are enough good captions")

    @model_validator(mode="after")
    def _least_below_most(self) -> CocaCaptions:
        if self.max_tokens < self.min_tokens:
            raise ValueError("max_tokens is below min_tokens")
        return self

    def as_clip(self) -> ClipConfig:
        """The same model as a CLIP, which a CoCa is too: open_clip loads it, and names it, in one way.

        In fp32 whatever the precision, which is autocast's: open_clip's own conversion leaves parts of a CoCa out.
        """
        return ClipConfig.model_validate(self.model_dump(include={"model", "weights", "device", "batch_size"}))

    def check(self, clip: ClipConfig | None) -> None:
        """Finds a user's mistake without loading weights or reaching for the network.

        Raises:
            UserError: as `ClipConfig.check`, or the model is a CLIP that cannot write.
        """
        config = self.as_clip()
        config.check()
        folder = config.folder()
        if folder is not None:
            about = json.loads((folder / _CONFIG_FILE).read_text())["model_cfg"]
        elif "/" in self.model:
            return  # its description is on the hub: `build` looks at it
        else:
            about = _open_clip().get_model_config(self.model)
        if "multimodal_cfg" not in about or about["text_cfg"].get("hf_model_name"):
            raise _cannot_write(self.model)

    def identity(self) -> dict[str, Any]:
        told = self.model_dump(mode="json", exclude={"model", "weights", "device"})
        return {**told, "weights": self.as_clip().name()}

    def build(self, clip: Clip | None) -> Coca:
        """Loads the model, unless it is the job's CLIP, which is loaded.

        Raises:
            UserError: as `check`, or CUDA asked for where there is none.
        """
        self.check(None)
        own = self.as_clip()
        same = clip is not None and clip._config.model_copy(update={"batch_size": self.batch_size}) == own
        return Coca(self, clip if clip is not None and same else own.build())


class Coca:
    """A loaded CoCa."""

    def __init__(self, config: CocaCaptions, clip: Clip) -> None:
        self._config = config
        self._clip = clip
        self._tokenizer: Any = clip._tokenizer
        if not hasattr(clip._model, "text_decoder") or not hasattr(self._tokenizer, "eot_token_id"):
            raise _cannot_write(config.model)

    def __call__(self, rows: Sequence[CaptionInput]) -> list[Said]:
        """Describes pictures, in batches of exactly `batch_size`, the last filled up with black ones."""
        size, side = self._config.batch_size, self._clip.image_size
        pictured = [row for row, told in enumerate(rows) if told.picture is not None]
        said: list[Said] = [None] * len(rows)
        for start in range(0, len(pictured), size):
            part = pictured[start : start + size]
            pixels = np.zeros((size, side, side, 3), np.uint8)
            for place, row in enumerate(part):
                pixels[place] = _pixels(rows[row].picture or b"", side)
            for row, text in zip(part, self.describe(pixels), strict=False):
                said[row] = text or None
        return said

    def describe(self, pixels: np.ndarray) -> list[str]:
        """The texts of uint8 (N, image_size, image_size, 3)."""
        import torch

        clip, config, marks = self._clip, self._config, self._tokenizer
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]
        lower = torch.autocast(clip._device.type, dtype, enabled=config.precision != "fp32")
        with torch.inference_mode(), lower:
            x = torch.from_numpy(pixels).to(clip._device).permute(0, 3, 1, 2).float() * clip._scale + clip._shift
            _, seen = clip._model._encode_image(x)
            seen = seen.repeat_interleave(config.beams, dim=0)
            start = torch.full((len(pixels), 1), int(marks.sot_token_id), device=clip._device)
            tokens = beam_search(
                lambda tokens: self._next(tokens, seen),
                start,
                end=int(marks.eot_token_id),
                beams=config.beams,
                min_tokens=config.min_tokens,
                max_tokens=config.max_tokens,
            )
        return [self._text(row) for row in tokens.tolist()]

    def _next(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """float32 (N, V) logits of what follows tokens (N, t) of pictures seen (N, P, W)."""
        import torch

        model = self._clip._model
        _, told = model._encode_text(tokens)
        logits: Tensor = model.text_decoder(seen, told)[:, -1].float()
        logits[:, int(self._tokenizer.sot_token_id)] = -torch.inf
        return logits

    def _text(self, tokens: list[int]) -> str:
        marks = {int(self._tokenizer.sot_token_id), int(self._tokenizer.eot_token_id)}
        text: str = self._tokenizer.decode([token for token in tokens if token not in marks])
        # the tokenizer puts a space after every word, also before a comma
        return re.sub(r"\s+([.,;:!?])", r"\1", text).strip()


def beam_search(
    following: Callable[[Tensor], Tensor], start: Tensor, *, end: int, beams: int, min_tokens: int, max_tokens: int
) -> Tensor:
    """The likeliest continuations that beam search finds, by mean log-probability of their tokens.

    A beam that has ended stays as it is among the others, and is filled up with `end`. One beam is the greedy choice.

    Args:
        following: of tokens (N * beams, t) the float32 (N * beams, V) logits of the next one.
        start: int64 (N, 1).
        end: the token after which there is none.
        min_tokens: tokens before the end at least, so that a caption is more than a word.
        max_tokens: tokens at most.

    Returns:
        int64 (N, t), from the start token on.
    """
    import torch

    count = len(start)
    tokens = start.repeat_interleave(beams, dim=0)
    total = torch.full((count, beams), -torch.inf, device=start.device)
    total[:, 0] = 0  # at first all beams are the same one
    length = torch.zeros((count, beams), device=start.device)
    first = torch.arange(count, device=start.device)[:, None] * beams
    for step in range(max_tokens):
        logits = following(tokens)
        if step < min_tokens:
            logits[:, end] = -torch.inf
        steps = logits.log_softmax(dim=-1).view(count, beams, -1)
        ended = (tokens[:, -1] == end).view(count, beams) & (step > 0)
        stay = torch.full_like(steps[0, 0], -torch.inf)
        stay[end] = 0
        steps = torch.where(ended[:, :, None], stay, steps)
        total, best = (total[:, :, None] + steps).flatten(1).topk(beams)
        beam, token = best // steps.shape[-1], best % steps.shape[-1]
        length = length.gather(1, beam) + ~ended.gather(1, beam)
        tokens = torch.cat([tokens[(first + beam).flatten()], token.view(-1, 1)], dim=1)
        if bool((tokens[:, -1] == end).all()):
            break
    winner = (total / length).argmax(dim=1, keepdim=True)
    return tokens[(first + winner).flatten()]


def _pixels(picture: bytes, side: int) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        return centre(np.asarray(image.convert("RGB")), side)


def _cannot_write(model: str) -> UserError:
    return UserError(
        f"{model} is not a CoCa that writes",
        field="model",
        remedy="name coca_ViT-B-32, coca_ViT-L-14, or a folder or hub id of such a model",
    )
