"""Check what a model says about its training set, with nothing but Python 3.

    python verify_proof.py proof.json DIGEST

DIGEST is the `training_set_digest` in the model's card, its `cleanplate.json` or its registry tags; take it from there,
never from whoever gave you the proof. The proof says that one picture, named by the sha256 of its file, was in the set
that the model was trained on, or that it was not. You need neither the set nor cleanplate.

How it works: the sha256s of all training pictures, sorted, are the leaves of a Merkle tree (RFC 9162, section 2.1);
DIGEST is sha256(0x02, number of leaves as 8 bytes, root). A picture was in the set if its leaf leads to DIGEST by the
hashes beside its way up. It was not if two leaves that stand side by side lead to DIGEST and it would stand between
them (or before the first, or after the last), because the leaves are sorted. That they are is the publisher's word: who
has the whole list can check it. And no hash tells what a computer did: that this set, and no other, went into the
training is the publisher's word as well, to which DIGEST holds them.

Exit code: 0 if the proof holds, 1 if it does not.
"""

import hashlib
import json
import re
import sys


def sha256(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def digest_from(leaf, size):
    """The digest that a leaf leads to in a set of `size` leaves; None where the path has not the right length."""
    index, width, path = leaf["index"], size, list(leaf["path"])
    found = sha256(b"\x00", bytes.fromhex(leaf["id"]))
    while width > 1:
        if index ^ 1 < width:  # there is a neighbour; the last one of an odd number goes up as it is
            if not path:
                return None
            beside = bytes.fromhex(path.pop(0))
            found = sha256(b"\x01", beside, found) if index % 2 else sha256(b"\x01", found, beside)
        index, width = index // 2, (width + 1) // 2
    return None if path else sha256(b"\x02", size.to_bytes(8, "big"), found).hex()


def holds(proof, digest):
    picture, size, leaves = proof["id"], proof["size"], proof["leaves"]
    numbers = [size] + [leaf["index"] for leaf in leaves]
    hashes = [picture] + [text for leaf in leaves for text in [leaf["id"], *leaf["path"]]]
    if proof["format"] != "cleanplate-proof-1" or any(type(n) is not int or not 0 <= n < 2**63 for n in numbers):
        return False
    if any(type(text) is not str or not re.fullmatch("[0-9a-f]{64}", text) for text in hashes):
        return False
    if any(leaf["index"] >= size or digest_from(leaf, size) != digest for leaf in leaves):
        return False
    if proof["kind"] == "inclusion":
        return len(leaves) == 1 and leaves[0]["id"] == picture
    if proof["kind"] != "absence":
        return False
    if len(leaves) == 2:
        first, second = leaves
        return second["index"] == first["index"] + 1 and first["id"] < picture < second["id"]
    if len(leaves) == 1:
        index, only = leaves[0]["index"], leaves[0]["id"]
        return (index == 0 and picture < only) or (index == size - 1 and only < picture)
    return not leaves and size == 0 and digest == sha256(b"\x02", bytes(8), sha256()).hex()


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: python verify_proof.py proof.json DIGEST")
    with open(sys.argv[1], encoding="utf-8") as file:
        proof = json.load(file)
    try:
        good = holds(proof, sys.argv[2].strip().lower())
    except (KeyError, TypeError, AttributeError, ValueError):
        good = False
    if not good:
        sys.exit("this proof does NOT hold")
    was = "was" if proof["kind"] == "inclusion" else "was NOT"
    said = f"the proof holds: {proof['id']} {was} among the {proof['size']} pictures of this training set"
    sys.stdout.write(said + "\n")


if __name__ == "__main__":
    main()
