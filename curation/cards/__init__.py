"""The cards: what has to be said in public about a manifest, and about a model that was trained on it.

`facts.gather` counts the rows in one pass over light columns, `provider` reads what only the provider can know, and one
file a document (`eu`, `ab2013`, `datasheet`, `model_card`) puts both into a `document.Document`, which `html` and
`markdown` set; `croissant` writes metadata for machines. Every answer says where it comes from, and a fact that is in
neither the data nor the provider's file is called absent, never guessed. A table states its total, and totals are those
of the kept rows.

May import `curation.manifest`, `curation.places`, and of `curation.report` what counts and what makes strangers' text
safe to show. Knows nothing of training: `pipelines.disclose` brings what stands in a bundle.

To add a document: a file with a function from `Disclosed` to a `Document`, and its name in `pipelines.disclose`.
"""
