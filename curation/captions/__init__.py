"""Captions: what training reads, written by captioners in order of preference.

`stage` runs the chain and measures what it wrote (language, words, CLIP score); `choice` applies the policy to it.
The captioners: `stated` (the source's own words, templates), `tags` (CLIP over a vocabulary), `coca` (open_clip's
models that write), `endpoint` (a vision-language model that speaks OpenAI's protocol).

To add one: a config with `kind`, `check`, `identity` and `build` beside the class it builds, a `captioner.Captioner`,
and its name in `stage.CaptionerConfig`.
"""

from curation.captions.captioner import Captioner, CaptionInput, Failed
from curation.captions.choice import Caption, CaptionPolicy, Choice, choose
from curation.captions.coca import CocaCaptions
from curation.captions.endpoint import EndpointCaptions
from curation.captions.stage import CaptionerConfig, CaptionsConfig, CaptionStage, Told
from curation.captions.stated import MetadataCaptions, TemplateCaptions
from curation.captions.tags import TagCaptions

__all__ = [
    "Caption",
    "CaptionInput",
    "CaptionPolicy",
    "CaptionStage",
    "Captioner",
    "CaptionerConfig",
    "CaptionsConfig",
    "Choice",
    "CocaCaptions",
    "EndpointCaptions",
    "Failed",
    "MetadataCaptions",
    "TagCaptions",
    "TemplateCaptions",
    "Told",
    "choose",
]
