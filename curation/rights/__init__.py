"""Rights signals, one file each: what a list, a licence statement or (later) a site or a file says about use.

A signal returns observations for a row, never a bare yes or no; `verdict.combine` adds them up, and every observation
is kept in the manifest, the permissive ones too.
"""
