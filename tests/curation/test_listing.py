"""Which rows of a stored unit may fare better another time."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.listing import _unheard
from curation.manifest import RIGHTS, Verdict
from curation.rights.verdict import IN_FILE

seen = st.fixed_dictionaries(
    {
        "signal": st.just("robots"),
        "where": st.sampled_from([IN_FILE, "robots.txt:3", None]),
        "verdict": st.sampled_from([v.value for v in Verdict]),
    }
)
cells = st.lists(st.none() | st.lists(seen, max_size=3), max_size=12)


@settings(deadline=None, max_examples=50)
@given(cells, st.integers(0, 12))
def test_whoever_could_not_be_asked_is_asked_again(rows: list[list[dict[str, Any]] | None], cut: int) -> None:
    chunks = [pa.array(part, RIGHTS) for part in (rows[:cut], rows[cut:])]
    expected = [any(s["verdict"] == Verdict.ERROR and s["where"] != IN_FILE for s in row or ()) for row in rows]
    assert _unheard(pa.chunked_array(chunks, RIGHTS)).tolist() == expected
    assert _unheard(pa.chunked_array([pa.array(rows, RIGHTS)[cut:]], RIGHTS)).tolist() == expected[cut:]
