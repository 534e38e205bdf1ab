"""The encoders' registry agrees with the tree, and every encoder keeps the contract."""

import pytest

from mmbench.encoders.base import ENCODERS, CorpusEncoder
from mmbench.errors import UnknownNameError

BUILTIN = {"colour-edge": "visual", "tfidf-svd": "textual"}


def test_the_builtin_encoders_need_no_weights():
    found = {name: ENCODERS.get(name).obj for name in ENCODERS.names()}
    builtin = {name for name, encoder in found.items() if issubclass(encoder, CorpusEncoder)}
    assert builtin == set(BUILTIN)
    assert all(encoder.builtin == (name in BUILTIN) for name, encoder in found.items())
    assert all(ENCODERS.summary(name) for name in found)


@pytest.mark.parametrize(("name", "modality"), BUILTIN.items())
def test_contract(name, modality):
    encoder = ENCODERS.get(name).obj()
    assert encoder.modalities == (modality,)
    assert encoder.settings
    other = encoder.encode_images if modality == "textual" else encoder.encode_texts
    with pytest.raises(TypeError, match="encodes no"):
        other([], *([0] if modality == "visual" else []))


def test_unknown_encoder_offers_the_nearest():
    with pytest.raises(UnknownNameError, match='Did you mean "colour-edge"'):
        ENCODERS.get("color-edge")
