"""The commands: what a user types, and what a Ray cluster is asked for.

One file a verb (`curate`, `train`, `takedown_plan` …), each with a function that takes a checked job or arguments and
returns a result model. `commands/` holds their names, help and options, `config` loads job files, `cluster` has the
project's only `ray.init`. May import everything; nothing imports it.

To add a verb: write its file with a `run` function, give its job model a `kind`, list it in `config.KINDS`, put its
command into its subject's file in `commands/` and an example into `jobs/`.
"""
