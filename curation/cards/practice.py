"""What the job of a manifest did about sites, rights and safety, in words, from the job that stands in the manifest.

What a job does not say (an older one, or one that was written by hand) is None, never a default of today.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curation.manifest import ManifestInfo
from curation.report.page import visible, without_user

# What each signal is, for a reader who knows the law and not the protocols.
SIGNALS = {
    "robots": "robots.txt (RFC 9309), whose refusals are not fetched",
    "aipref": "AI preferences (IETF Content-Usage), in robots.txt and in response headers",
    "content_signal": "Content-Signal lines in robots.txt",
    "tdmrep": "the TDM Reservation Protocol (tdmrep.json, response headers, HTML)",
    "robots_tags": "X-Robots-Tag headers and robots meta tags: noai, noimageai, noml",
    "ai_txt": "ai.txt",
    "rsl": "Really Simple Licensing (RSL) terms",
    "c2pa": "C2PA and CAWG training-and-data-mining assertions inside files",
    "plus": "the IPTC/PLUS data-mining property inside files",
    "licence": "the licence stated by the source, against the job's list of licences",
    "registry": "a do-not-train registry",
    "robots_ai_agents": "what robots.txt says to the AI crawlers of others",
}
# Stages and reasons that have to do with rights; whatever else was removed says nothing about them.
STAGES = ("rights", "licence")
REASONS = frozenset({"not_asked", "site_refuses", "site_unreachable"})


def _part(info: ManifestInfo, name: str) -> Mapping[str, Any]:
    found = info.job.get(name)
    return found if isinstance(found, Mapping) else {}


def agent(info: ManifestInfo) -> str | None:
    """The name the crawler gives itself, with where its user can be reached."""
    fetch = _part(info, "fetch")
    name, contact = fetch.get("user_agent"), fetch.get("contact")
    if not name:
        return None
    return visible(f"{name} (+{without_user(str(contact))})" if contact else str(name))


def behaviour(info: ManifestInfo) -> list[str]:
    """How the crawler went about it; empty where the job does not say."""
    fetch, found = _part(info, "fetch"), []
    if not fetch:
        return []
    found.append(
        "The crawler fetches the addresses that the job's sources list and follows no links in pages. It sends no "
        "cookies, solves no captchas and passes no paywalls: an answer that refuses is a refusal. It signs in only "
        "where an address of the job's own list carries a user's name."
    )
    if _part(info, "rights").get("pages"):
        found.append("Where a source names the page that a picture stands on, the page is read for what it reserves.")
    listed = _part(info, "rights").get("signals")
    if listed is None:
        found.append("Whether robots.txt was asked: not in the data; the job says nothing about signals.")
    elif "robots" in listed:
        found.append("robots.txt is asked before anything else of a host; what it refuses is not fetched.")
    else:
        found.append("The job did not ask for robots.txt.")
    pace = [
        f"at most {fetch['per_host']} requests to one host at a time" if "per_host" in fetch else "",
        f"{fetch['delay_s']:g} s between two requests to one host" if fetch.get("delay_s") else "",
        f"at most {fetch['max_redirects']} redirects for one address" if "max_redirects" in fetch else "",
        f"files of more than {fetch['max_bytes']:,} bytes are refused" if "max_bytes" in fetch else "",
    ]
    if any(pace):
        found.append("Limits: " + "; ".join(part for part in pace if part) + ".")
    return found


def signals(info: ManifestInfo) -> list[str] | None:
    """The opt-out protocols the job asked for, each in words; None where it does not say."""
    rights = _part(info, "rights")
    listed = rights.get("signals")
    if not isinstance(listed, list | tuple):
        return None
    names = [*map(str, listed), *(["registry"] if rights.get("registry") else [])]
    return [_words(name) for name in names]


def _words(name: str) -> str:
    return SIGNALS.get(name, visible(name))


def rights(info: ManifestInfo) -> list[str]:
    """What the job does with what signals say, sentence by sentence."""
    job, found = _part(info, "rights"), []
    words = {"hold": "is held back for a person to decide", "drop": "is dropped", "keep": "is kept"}
    found.append(
        "Across protocols a list of the provider's own comes first, then any reservation, then any permission. "
        "A picture that is opted out takes its exact and near copies with it."
    )
    if job.get("error") in words:
        found.append(f"A picture whose rights could not be asked or read {words[job['error']]}.")
    if job.get("unknown") in words:
        found.append(f"A picture on which no signal speaks {words[job['unknown']]}.")
    if job.get("advisory"):
        found.append(f"Recorded without deciding: {', '.join(_words(str(name)) for name in job['advisory'])}.")
    licences = _part(info, "licences")
    if licences.get("allow") is not None:
        found.append(f"Licences that may be trained on: {', '.join(visible(str(n)) for n in licences['allow'])}.")
    if licences.get("unstated") in words:
        found.append(
            f"A picture that states no licence, or one that no list is given for, {words[licences['unstated']]}."
        )
    found += [_source(source.kind, source.entries, source.read_at.date().isoformat()) for source in info.rights]
    return found


def _source(kind: str, entries: int, day: str) -> str:
    return f"Asked besides: a list of the kind {visible(kind)}, {entries:,} entries, read on {day}."


def ledger(info: ManifestInfo) -> str:
    """The takedown ledger that was heeded."""
    if info.ledger is None:
        return "No takedown ledger is named in the manifest."
    return f"Takedown ledger heeded: version {visible(info.ledger.version)}, {info.ledger.entries:,} entries in force."


def evidence(info: ManifestInfo) -> str:
    """How old the evidence on rights is."""
    if info.evidence_from is None:
        return "When the oldest evidence on the rights of a kept picture was seen: not in the data."
    return f"The oldest evidence that a kept picture rests on was seen on {info.evidence_from.date().isoformat()}."


def safety(info: ManifestInfo) -> list[str]:
    """What the job measures against unsafe content; empty where it measures nothing."""
    job, found = _part(info, "safety"), []
    concepts = job.get("concepts")
    if isinstance(concepts, Mapping) and concepts:
        names = ", ".join(visible(str(name)) for name in concepts)
        found.append(f"CLIP measures every picture against these concepts, each with a threshold: {names}.")
    if isinstance(job.get("nsfw"), Mapping):
        found.append(f"An NSFW classifier measures every picture; threshold {job['nsfw'].get('threshold')}.")
    return found


def cleaning(info: ManifestInfo) -> list[str]:
    """The steps between an input and a training picture, as the job sets them."""
    job, found = info.job, []
    if job.get("buckets"):
        found.append("Pictures are decoded, turned upright, scaled to cover the nearest of some shapes, and cut to it.")
    elif job.get("image_size"):
        found.append(f"Pictures are decoded, turned upright and scaled to {job['image_size']} pixels.")
    if job.get("frames"):
        found.append(f"Moving pictures are sampled to {job['frames']} frames; those with fewer are dropped.")
    least = _part(info, "images").get("min_side", 1)
    if least > 1:
        found.append(f"Pictures with a side below {least} pixels are dropped.")
    for measure, limits in sorted(_part(info, "filters").items()):
        if isinstance(limits, Mapping):
            bounds = [f"{side} {limits[side]:g}" for side in ("min", "max") if limits.get(side) is not None]
            found.append(f"Filter: {visible(str(measure))}, {' and '.join(bounds)}.")
    if "duplicates" in job:
        found.append("Of copies (the same file, the same pixels, or a near copy by perceptual hash) one stays.")
    if info.clip is not None:
        found.append(f"Embeddings by the CLIP model {visible(info.clip.name)}.")
    return found
