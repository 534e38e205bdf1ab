from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmbench.encoders.joint import packed, read_processor
from mmbench.errors import DataError


def test_tokens_move_to_the_front_in_their_order() -> None:
    hidden = torch.arange(1.0, 11.0).view(2, 5, 1)
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 1]])
    tokens, kept = packed(hidden, mask)
    assert tokens[:, :, 0].tolist() == [[1.0, 2.0, 4.0], [6.0, 10.0, 0.0]]
    assert kept.tolist() == [[True, True, True], [True, True, False]]


def test_tokens_do_not_tell_what_else_was_in_the_batch() -> None:
    # Two tokens of a text, padded to four and to two, then three of a picture.
    text, picture = torch.randn(1, 2, 6), torch.randn(1, 3, 6)
    padding = torch.full((1, 2, 6), torch.nan)  # whatever stands there, it is not told
    found = []
    for n in (0, 2):
        hidden = torch.cat([text, padding[:, :n], picture], dim=1)
        mask = torch.tensor([[1] * 2 + [0] * n + [1] * 3])
        tokens, kept = packed(hidden.to(torch.bfloat16).float(), mask)
        assert kept.all()
        found.append(tokens)
    assert found[0].dtype == torch.float32
    assert torch.equal(*found)


def test_what_is_said_of_pictures_is_found_in_either_file(tmp_path: Path) -> None:
    assert read_processor(tmp_path) == ({}, "documented")
    own = {"size": {"shortest_edge": 96}}
    newer = tmp_path / "processor_config.json"
    newer.write_text(json.dumps({"processor_class": "ViltProcessor", "image_processor": own}))
    assert read_processor(tmp_path) == (own, "processor_config.json")
    newer.write_text(json.dumps({"processor_class": "ViltProcessor"}))
    assert read_processor(tmp_path) == ({}, "documented")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 384}))
    assert read_processor(tmp_path) == ({"size": 384}, "preprocessor_config.json")
    (tmp_path / "preprocessor_config.json").write_text("<html>")
    with pytest.raises(DataError, match=r"E404 .*preprocessor_config\.json is broken"):
        read_processor(tmp_path)
