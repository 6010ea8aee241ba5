"""The command line: names, help and options of the verbs, whose work is in the modules of their names.

A file is a subject, with a typer app that `pipelines.cli` puts together. Nothing heavy is imported before a verb runs.
"""
