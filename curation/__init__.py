"""Curation: from a heap of images to a manifest in which every input has one row and a reason.

Measuring stages (fetch, decode, embed) only append columns; one `decide` applies the policy. `manifest` is the contract
with everything downstream; `errors`, `storage` and `torchvision_ops` are leaves that the other packages may use too.
Imports none of `training`, `serving`, `pipelines`.

To add a source, captioner or rights signal: write its config and class in `sources`, `captions` or `rights/`, and add
it to the union in that file. A new measurement is a new column in `manifest.schema` and a stage in `measure`.
"""
