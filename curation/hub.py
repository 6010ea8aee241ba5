"""What a folder of weights may have a library load by name, and with which options."""

from __future__ import annotations

import re

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""A model of the hub, or an architecture: never a path."""

TOKENIZER_OPTIONS = frozenset({"clean", "strip_sep_token", "language", "reduction_mask", "additional_special_tokens"})
"""The options of tokenizers that run nothing."""
