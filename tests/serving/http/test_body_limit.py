"""How deep JSON is, without parsing it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.generator import Generator
from serving.http.body_limit import deeper
from tests.serving.local import JOB, LocalBackend, error_of, send
from training.bundle import DiffusionModel
from training.tracking import ModelVersion


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


LEAVES = st.none() | st.integers() | st.text(alphabet='[]{}"\\a', max_size=8)
TREES = st.recursive(LEAVES, lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(st.text(max_size=3), deeper))


@given(TREES, st.integers(0, 6))
def test_the_depth_is_that_of_what_the_parser_makes_of_it(tree: Any, limit: int) -> None:
    text = json.dumps(tree)
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"):  # the parser takes all of them
        assert deeper(text.encode(encoding), limit) is (depth_of(tree) > limit)


@pytest.mark.parametrize("body", [b"[" * 200_000, b'{"a":' * 50_000, b'"' * 200_000, b'["' + b"\\" * 200_000, b"\xff"])
def test_what_is_broken_costs_no_more_than_its_length(body: bytes) -> None:
    assert deeper(body, 16) is (body[:3] in (b"[[[", b'{"a'))


def test_a_body_of_many_levels_is_refused(version: ModelVersion, model: DiffusionModel) -> None:
    backend = LocalBackend(Generator(version, model, None, JOB.limits))
    for levels, code in ((15, "unknown_parameter"), (16, "body_too_deep")):
        body = {"prompt": "a", "x": json.loads("[" * levels + "]" * levels)}
        answer = send(backend, "POST", "/v1/images/generations", json=body)
        assert (answer.status_code, error_of(answer)["code"]) == (400, code)
