"""imagededup's side, run by the Python of its own environment: hash a folder, search it, write what was found.

`ask_imagededup.py FOLDER SEARCH_METHOD OUT.json`
"""

import json
import sys
import time


def main() -> None:
    from imagededup.methods import PHash

    folder, search, out = sys.argv[1:]
    method = PHash(verbose=False)
    begun = time.perf_counter()
    hashes = method.encode_images(folder, num_enc_workers=2)
    hashed = time.perf_counter()
    found = method.find_duplicates(
        encoding_map=hashes, max_distance_threshold=3, search_method=search, num_dist_workers=2
    )
    seconds = {"hash": hashed - begun, "search": time.perf_counter() - hashed}
    with open(out, "w") as file:
        json.dump({"hashed": sorted(hashes), "duplicates": found, "seconds": seconds}, file)


if __name__ == "__main__":
    main()
