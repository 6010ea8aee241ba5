"""A few hundred inputs of the fuzzer of files, packets and licences."""

from __future__ import annotations

import pytest

from tests.curation.rights.fuzz_files import KINDS, permits_packet, permits_signed, run
from tests.curation.rights.signed import mining, plain, sign
from tests.curation.rights.test_plus import element, picture


@pytest.mark.parametrize("name", KINDS)
def test_nothing_crashes_and_only_permissions_permit(name: str) -> None:
    found = run(name, 400)
    assert found["faults"] == 0
    assert found["permits"], "the inputs must reach permissions, or nothing is shown about them"
    assert found["permits"] < found["inputs"]


def test_the_fuzzer_finds_what_it_is_for() -> None:
    other = sign(plain(colour=(0, 0, 255)), "JPEG", mining("cawg.training-mining", ai_generative_training="allowed"))
    with pytest.raises(AssertionError, match="another picture"):
        permits_signed("JPEG", other)
    assert permits_packet("XMP", picture("JPEG", element("DMI-ALLOWED")))
