"""Which training pictures are near to a picture: the index that a server searches, for credit and against copies.

    neighbours/index.json           `IndexInfo`, written last: what it is about, its calibration, sha256 of every file
    neighbours/pictures.parquet     a row for each picture, of a film for each frame: vectors, creator, licence, uri
    neighbours/takedowns/N/         a manifest by itself: of one the columns by which a takedown finds pictures

An optional folder of the bundle's, as `onnx` is: `cleanplate.json` knows nothing of it. `spaces` is the arithmetic,
`index` the files and the search, `calibration` what counts as a copy: that is all that serving imports, and Ray is
no part of it. `building` makes an index; without held-out pictures `leave_one_out` stands in for them.
"""
