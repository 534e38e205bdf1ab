"""The encoders' registry agrees with the tree, and every encoder keeps the contract."""

from pathlib import Path

import pytest

import mmbench.encoders
from mmbench.encoders.base import ENCODERS, Encoder
from mmbench.errors import UnknownNameError

SHARED = {"__init__", "base", "pictures"}


def test_one_file_per_encoder():
    folder = Path(mmbench.encoders.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - SHARED
    assert {name.replace("-", "_") for name in ENCODERS.names()} == files
    assert {"tfidf_svd", "colour_edge"} <= files


@pytest.mark.parametrize("name", ENCODERS.names())
def test_contract(name):
    encoder = ENCODERS.get(name).obj()
    assert isinstance(encoder, Encoder)
    assert encoder.modality in ("visual", "textual")
    assert encoder.settings
    assert ENCODERS.summary(name)
    other = encoder.encode_images if encoder.modality == "textual" else encoder.encode_texts
    with pytest.raises(TypeError, match="encodes no"):
        other([], *([0] if encoder.modality == "visual" else []))


def test_unknown_encoder_offers_the_nearest():
    with pytest.raises(UnknownNameError, match='Did you mean "colour-edge"'):
        ENCODERS.get("color-edge")
