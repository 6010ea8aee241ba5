"""Rights signals, one file each: what a list, a licence statement, a site, an answer, a page or a file says about use.

A signal returns observations, never a bare yes or no; `statements` puts together all that is said about a URL,
`verdict` adds it up, and every observation is kept in the manifest, the permissive and the failed ones too.
"""
