"""The report's words for the codes of a manifest."""

from __future__ import annotations

from curation.report.charts import number
from curation.report.representation import ANY, Removal

SIDES = {"below": "below", "over": "above", "from": "from"}
SCORE_KINDS = ("safety", "quality", "size", "caption", "duplicates")

_SCORES = {
    ("size", "shorter_side"): "shorter side, pixels",
    ("size", "aspect"): "aspect, long side ÷ short side",
    ("size", "width"): "width, pixels",
    ("size", "height"): "height, pixels",
    ("size", "pixels"): "width × height, pixels",
    ("size", "bytes"): "file size, bytes",
    ("safety", "opennsfw"): "safety: NSFW classifier (open_nsfw)",
    ("caption", "image_text"): "caption: CLIP image-text score",
    ("duplicates", "perceptual"): "perceptual duplicates: share of hash bits that agree",
    ("duplicates", "semantic"): "semantic duplicates: cosine",
    ("duplicates", "nearest"): "nearest neighbour: cosine of embeddings",
}

_REASONS = {
    "passed": "passed every check",
    "not_asked": "not asked for: opted out by where it lies",
    "not_found": "not found",
    "not_a_file": "not a file",
    "unreadable": "could not be read",
    "no_image": "no image in the row",
    "bad_url": "not an address",
    "wrong_length": "not as many bytes as announced",
    "empty": "no bytes in it",
    "too_large": "more bytes than allowed",
    "not_an_image": "not an image",
    "unsupported_format": "a format that is not read",
    "truncated": "cut short",
    "corrupt": "damaged",
    "too_many_pixels": "more pixels than allowed",
    "refused_address": "an address that is not fetched from",
    "site_unreachable": "its site could not be asked whether it may be fetched",
    "dns": "host name not found",
    "frames_differ": "frames of different sizes",
    "connection": "connection failed",
    "opted_out": "opted out",
    "opted_out_near_copy": "near-copy of something opted out",
    "rights_error": "rights that could not be asked or read",
    "rights_unknown": "nobody says what may be done with it",
    "licence_not_allowed": "licence not on the job's list",
    "licence_unstated": "no licence stated",
    "too_small": "too small",
    "odd_shape": "too far from the shape of any bucket",
    "too_few_frames": "fewer frames than the job asks for",
    "filtered": "filter",
    "not_measured": "could not be measured",
    "unsafe": "safety",
    "caption_missing": "no caption",
    "caption_poor": "no caption that is good enough",
    "duplicate_exact": "same bytes as a picture that stays",
    "duplicate_pixel": "same pixels as a picture that stays",
    "duplicate_perceptual": "looks like a picture that stays",
    "duplicate_semantic": "shows the same as a picture that stays",
}

SOURCES = {
    "domain": "Domains",
    "creator": "Creators",
    "licence": "Licences",
    "dataset": "Data sets",
    "format": "Formats",
}


def score(kind: str, name: str) -> str:
    """A measure's title."""
    return _SCORES.get((kind, name)) or (f"safety: {name}" if kind == "safety" else name.replace("_", " "))


def reason(code: str) -> str:
    """A reason, or a reason with its rule (`unsafe: safety.concepts.weapon`), for a person."""
    name, _, rule = code.partition(": ")
    text = _REASONS.get(name) or name.replace("_", " ")
    if name == "filtered" and rule.startswith("filters."):
        measure, _, bound = rule.removeprefix("filters.").partition(".")
        return f"{measure.replace('_', ' ')} {_BOUNDS.get(bound, 'out of bounds')}"
    return (
        f"{text}: {_RULES.get(rule) or rule.removeprefix('safety.concepts.').removeprefix('filters.')}"
        if rule
        else text
    )


_BOUNDS = {"min": "too low", "max": "too high"}
_RULES = {"safety.nsfw.threshold": "NSFW classifier"}


def share(part: int, whole: int) -> str:
    """A share in per cent with one decimal; what is there is never shown as 0.0 %, nor what is not all as 100.0 %."""
    if whole == 0:
        return "–"
    percent = 100 * part / whole
    if 0 < percent < 0.05:
        return "<0.1%"
    if 99.95 <= percent < 100:
        return ">99.9%"
    return f"{percent:.1f}%"


def many(n: int, one: str, more: str | None = None) -> str:
    """A count with its noun, in the singular for one."""
    return f"{n:,} {one if n == 1 else more or one + 's'}"


def warning(name: str, removal: Removal) -> str:
    """A warning of the representation report about a set of groups, in a sentence."""
    ratio = removal.ratio
    assert ratio is not None, "nothing to warn of"
    what = "Curation as a whole" if removal.filter == ANY else f"“{reason(removal.filter)}”"
    begin = f"{what} removes {share(removal.removed, removal.reached)} of “{removal.group}” ({name}) and "
    if removal.rest_removed == 0:
        return f"{begin}none of the rest (the ratio's 95% interval begins at {number(ratio.low)})."
    return (
        f"{begin}{share(removal.rest_removed, removal.rest_reached)} of the rest: {number(ratio.ratio)} times as often "
        f"(95% interval {number(ratio.low)} to {number(ratio.high)})."
    )
