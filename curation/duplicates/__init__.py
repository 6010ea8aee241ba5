"""Duplicates: which rows are copies of which, and which one of them stays.

Finding and choosing are apart. `edges.find` measures how alike rows are, by `classes` (bytes, pixels), `hamming`
(perceptual hashes) and `semantic` (embeddings), on one machine or in `buckets` on Ray; `copies.Copies` makes of that
what the policy says. So a changed policy finds nothing anew.

A new kind of copy is an edge kind in `edges`, found there, and a step of `Copies._around`.
"""

from curation.duplicates.copies import KINDS, REASONS, RULES, Bindings, Copies, preference
from curation.duplicates.edges import CopyInputs, DuplicatesConfig, Edges, PerceptualConfig, find
from curation.duplicates.hamming import near_pairs
from curation.duplicates.motion import Frames, Motion, other_frames
from curation.duplicates.semantic import SemanticConfig

__all__ = [
    "KINDS",
    "REASONS",
    "RULES",
    "Bindings",
    "Copies",
    "CopyInputs",
    "DuplicatesConfig",
    "Edges",
    "Frames",
    "Motion",
    "PerceptualConfig",
    "SemanticConfig",
    "find",
    "near_pairs",
    "other_frames",
    "preference",
]
