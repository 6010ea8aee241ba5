"""Proofs about a training set: every member has one, every stranger has one, and nothing else passes."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import UserError
from training import merkle
from training.merkle import Proof

SCRIPT = Path(__file__).parents[2] / "docs" / "verify_proof.py"

# The published examples of Certificate Transparency's own reference implementation: eight leaves, and their roots.
CT_LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def named(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


ids = st.integers(0, 300).map(named)
sets = st.sets(ids, max_size=40)


def page() -> Any:
    """The stand-alone script as a module."""
    spec = importlib.util.spec_from_file_location("verify_proof", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = page()


def both(proof: Proof, digest: str) -> bool:
    """What our verifier says, once the script has said the same."""
    ours = merkle.verify(proof, digest)
    assert PAGE.holds(json.loads(proof.model_dump_json()), digest) == ours
    return ours


def test_the_tree_is_that_of_certificate_transparency() -> None:
    leaves = [bytes.fromhex(leaf) for leaf in CT_LEAVES]
    assert [merkle.root(leaves[: n + 1]).hex() for n in range(8)] == CT_ROOTS
    assert merkle.root([]).hex() == hashlib.sha256(b"").hexdigest()


def test_the_digest_binds_the_number_of_leaves() -> None:
    one = named(1)
    leaf = hashlib.sha256(b"\0" + bytes.fromhex(one)).digest()
    assert merkle.digest([one]) == hashlib.sha256(b"\2" + (1).to_bytes(8, "big") + leaf).hexdigest()


@given(members=sets, asked=ids)
def test_whoever_is_in_proves_it_and_whoever_is_not_proves_that(members: set[str], asked: str) -> None:
    digest = merkle.digest(members)
    assert digest == merkle.digest([*members, *sorted(members, reverse=True)])
    for id_ in {asked, *list(members)[:5]}:
        proof = merkle.prove(members, id_)
        assert proof.kind == ("inclusion" if id_ in members else "absence")
        assert both(proof, digest)
        assert Proof.parse(proof.model_dump_json()) == proof


@given(members=sets, others=sets, asked=ids)
def test_a_proof_holds_for_its_own_set_alone(members: set[str], others: set[str], asked: str) -> None:
    proof = merkle.prove(members, asked)
    assert both(proof, merkle.digest(others)) == (members == others)


def places(node: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a proof's JSON that holds a number, a text or a list."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    here = [] if isinstance(node, dict) else [at]
    return here + [place for key, child in children for place in places(child, (*at, key))]


def changed(value: Any, data: st.DataObject) -> Any:
    if isinstance(value, int):
        return value + data.draw(st.sampled_from([-2, -1, 1, 2, 2**32]))
    if isinstance(value, list):
        return data.draw(st.sampled_from([value[:-1], [*value, *value[-1:]], value[::-1], value[1:]]))
    if value in ("inclusion", "absence"):
        return "absence" if value == "inclusion" else "inclusion"
    at = data.draw(st.integers(0, len(value) - 1))
    return (
        value[:at] + data.draw(st.sampled_from("0123456789abcdefA ").filter(lambda c: c != value[at])) + value[at + 1 :]
    )


@settings(max_examples=500)
@given(members=sets, asked=ids, data=st.data())
def test_any_single_change_is_found(members: set[str], asked: str, data: st.DataObject) -> None:
    digest, proof = merkle.digest(members), merkle.prove(members, asked)
    raw = json.loads(proof.model_dump_json())
    place = data.draw(st.sampled_from(places(raw)))
    forged = copy.deepcopy(raw)
    node = forged
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = changed(node[place[-1]], data)
    if forged == raw:  # a list of one or none, turned or emptied
        return
    try:
        parsed = Proof.parse(json.dumps(forged))
    except UserError:
        assert not PAGE.holds(forged, digest)
    else:
        # of all changes, one leaves a true proof: another id in the same gap is absent, too
        gap = place == ("id",) and proof.kind == "absence" and merkle.prove(members, parsed.id) == parsed
        assert both(parsed, digest) == gap
    at = data.draw(st.integers(0, 63))
    assert not both(proof, digest[:at] + ("0" if digest[at] != "0" else "1") + digest[at + 1 :])


@given(members=sets.filter(len), asked=ids, size=st.integers(0, 100))
def test_a_wrong_size_fails(members: set[str], asked: str, size: int) -> None:
    proof = merkle.prove(members, asked).model_copy(update={"size": size})
    assert both(proof, merkle.digest(members)) == (size == len(members))


def test_neighbours_that_are_not_next_to_each_other_prove_nothing() -> None:
    members = sorted(map(named, range(9)))
    digest = merkle.digest(members)
    hidden = members[4]
    leaves = tuple(merkle.prove(members, members[i]).leaves[0] for i in (3, 5))
    assert not both(Proof(kind="absence", id=hidden, size=9, leaves=leaves), digest)
    for end, beyond in ((leaves[1:], hidden), (leaves[:1], hidden)):
        assert not both(Proof(kind="absence", id=beyond, size=9, leaves=end), digest)
    assert not both(Proof(kind="absence", id=hidden, size=9, leaves=()), digest)


@given(st.text() | st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_what_is_no_proof_is_refused(text: str | bytes) -> None:
    with pytest.raises(UserError, match="no proof"):
        Proof.parse(text)


def test_an_id_is_lower_case_hex() -> None:
    for bad in ("", "ab", named(1).upper(), "g" * 64):
        with pytest.raises(ValueError, match="no sha256"):
            merkle.digest([bad])


def test_the_script_runs_alone(tmp_path: Path) -> None:
    members = list(map(named, range(5)))
    digest = merkle.digest(members)

    def run(proof: str, digest: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "proof.json").write_text(proof)
        command = [sys.executable, "-I", "-S", str(SCRIPT), str(tmp_path / "proof.json"), digest]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    for id_, words in ((members[0], "was among the 5"), (named(77), "was NOT among the 5")):
        done = run(merkle.prove(members, id_).model_dump_json(), digest)
        assert (done.returncode, words in done.stdout) == (0, True), done
        done = run(merkle.prove(members[1:], id_).model_dump_json(), digest)
        assert (done.returncode, "does NOT hold" in done.stderr) == (1, True), done
    assert run("[]", digest).returncode == 1
    assert "Traceback" not in run('{"id": 3}', digest).stderr


def test_a_large_set_takes_seconds() -> None:
    members = [hashlib.sha256(i.to_bytes(4, "big")).hexdigest() for i in range(200_000)]
    began = time.monotonic()
    digest = merkle.digest(members)
    proof = merkle.prove(members, named(1))
    assert time.monotonic() - began < 30  # under one on an idle core; a tree that is quadratic takes days
    assert merkle.verify(proof, digest)
    assert sum(len(leaf.path) for leaf in proof.leaves) <= 36
