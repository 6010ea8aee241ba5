"""The report: one self-contained HTML page about a manifest, for whoever has to answer for it.

`facts.gather` counts the rows in one pass over the light columns, `pictures` chooses and fetches the few that are
shown, `page.render` makes the page. Numbers come from the rows, never from memory of the run that made them. May import
`curation.manifest` and what reads a job; of curation only `cards` imports the report, which counts the same things.

To add a section: a tally in `facts.py` with the columns it reads (a manifest without them gets a line that says so), a
part of `page.html.j2`, and a chart in `charts.py` where a table is not enough.
"""
