"""The commands: what a user types, and what a Ray cluster is asked for.

One file a verb (`curate`, `train`, `takedown_plan` …), each with a function that takes a checked job or arguments and
returns a result model. `cli` maps them to the command line, `config` loads job files,
`cluster` holds the project's only `ray.init`. May import everything; nothing imports it.

To add a verb: write its file with a `run` function, give its job model a `kind`, list both in `config.KINDS` and `cli`,
and put an example in `jobs/`.
"""
