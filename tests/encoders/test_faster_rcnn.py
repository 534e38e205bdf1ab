"""The real architecture, random and on small pictures, against torchvision called directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mmbench.encoders.faster_rcnn import FasterRCNN
from mmbench.encoders.neural import Encoded, Options
from mmbench.errors import ConfigError, DataError, UnknownNameError


class Small(FasterRCNN):
    short_side = 64
    long_side = 96


def direct() -> Any:
    """Torchvision's own model, with the constant that its published weights need."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    model = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        box_score_thresh=0.05,
        box_detections_per_img=49,
        min_size=64,
        max_size=96,
    ).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.manual_seed(2)
    model = direct()
    with torch.no_grad():
        # Spread the scores, so that some boxes are above the threshold and most are not.
        model.roi_heads.box_predictor.cls_score.weight.mul_(40)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(3)
    path = tmp_path_factory.mktemp("rcnn") / "rcnn.pth"
    torch.save(model.state_dict(), path)
    return path, model


@pytest.fixture(scope="module")
def encoder(saved: tuple[Path, Any]) -> FasterRCNN:
    made = Small(Options(weights=saved[0], tokens=True))
    made.load()
    return made


def sibling(loaded: FasterRCNN, variant: str) -> FasterRCNN:
    """The same model, which takes a second to load, under another variant."""
    made = Small(Options(weights=loaded.options.weights, tokens=True, variant=variant))
    made.weights, made.module = loaded.weights, loaded.module
    return made


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(4)
    return [
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        for shape in ((50, 90, 3), (130, 70, 3))
    ]


def encode(encoder: FasterRCNN, images: list[Image.Image]) -> Encoded:
    with torch.inference_mode():
        return encoder.encode_picture(
            encoder.picture_batch([encoder.read_picture(image, "a") for image in images])
        )


def regions_of(model: Any, picture: Image.Image) -> Tensor:
    """The boxes of torchvision's forward pass, and their vectors by a second one."""
    from torchvision.models.detection.transform import resize_boxes
    from torchvision.transforms.functional import to_tensor

    given = to_tensor(picture)
    with torch.inference_mode():
        boxes = model([given])[0]["boxes"]
        images, _ = model.transform([given])
        boxes = resize_boxes(boxes, list(given.shape[1:]), list(images.image_sizes[0]))
        pyramid = model.backbone(images.tensors)
        pooled = model.roi_heads.box_roi_pool(pyramid, [boxes], images.image_sizes)
        vectors: Tensor = model.roi_heads.box_head(pooled)
    return vectors


def test_regions_are_those_of_torchvision_batched_and_alone(
    saved: tuple[Path, Any], encoder: FasterRCNN
) -> None:
    both = encode(encoder, pictures())
    assert both.tokens is not None
    assert both.mask is not None
    assert both.tokens.shape == (2, 49, 1024)
    for row, picture in enumerate(pictures()):
        expected = regions_of(saved[1], picture)
        n = len(expected)
        assert 0 < n <= 49
        scale = float(expected.abs().max())
        assert both.mask[row].tolist() == [True] * n + [False] * (49 - n)
        # Boxes there and back again through the size of the picture lose a little.
        assert torch.allclose(both.tokens[row, :n], expected, rtol=0, atol=1e-5 * max(1, scale))
        assert not both.tokens[row, n:].any()
        assert torch.allclose(both.pooled[row], expected.mean(dim=0), atol=1e-5 * max(1, scale))
        alone = encode(encoder, [picture])
        assert torch.equal(alone.pooled[0], both.pooled[row])
    assert torch.equal(encode(encoder, pictures()).pooled, both.pooled)


def test_where_there_is_no_box_the_whole_picture_is_the_region(
    saved: tuple[Path, Any], tmp_path: Path
) -> None:
    state = dict(torch.load(saved[0], weights_only=True))
    state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(91, 1024)  # 1 / 91 each
    state["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(91)
    torch.save({"model": state}, tmp_path / "flat.pth")
    made = Small(Options(weights=tmp_path, tokens=True))
    made.load()
    found = {
        variant: encode(sibling(made, variant), pictures())
        for variant in ("regions", "whole-first", "fill")
    }
    plain = found["regions"]
    assert plain.mask is not None
    assert plain.mask.sum(dim=1).tolist() == [1, 1]
    assert plain.tokens is not None
    with torch.inference_mode():
        model = made.module
        pixels = made.read_picture(pictures()[0], "a")
        padded = torch.nn.functional.pad(
            pixels, (0, -pixels.shape[2] % 32, 0, -pixels.shape[1] % 32)
        )
        pyramid = model.backbone(padded[None])  # type: ignore[operator]
        box = torch.tensor([[0.0, 0.0, pixels.shape[2], pixels.shape[1]]])
        heads: Any = model.roi_heads
        whole = heads.box_head(heads.box_roi_pool(pyramid, [box], [tuple(pixels.shape[1:])]))
    assert torch.allclose(plain.pooled[:1], whole, atol=1e-5)
    assert torch.equal(found["whole-first"].pooled, plain.pooled)
    filled = found["fill"].mask
    assert filled is not None
    assert filled.sum() > 2


def test_the_whole_picture_comes_first_and_proposals_fill_the_rest(encoder: FasterRCNN) -> None:
    plain = encode(encoder, pictures())
    first, fill = (
        encode(sibling(encoder, variant), pictures()) for variant in ("whole-first", "fill")
    )
    assert plain.tokens is not None and plain.mask is not None  # noqa: PT018
    assert first.tokens is not None and first.mask is not None  # noqa: PT018
    assert fill.tokens is not None and fill.mask is not None  # noqa: PT018
    for row in range(2):
        n = int(plain.mask[row].sum())
        assert int(first.mask[row].sum()) == min(49, n + 1)
        m = min(n, 48)
        assert torch.allclose(first.tokens[row, 1 : m + 1], plain.tokens[row, :m], atol=1e-5)
        assert int(fill.mask[row].sum()) >= n
        assert torch.allclose(fill.tokens[row, :n], plain.tokens[row, :n], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (20_000, 3), (5000, 4000)], ids=str)
def test_pictures_of_any_size(size: tuple[int, int], encoder: FasterRCNN) -> None:
    read = encoder.read_picture(Image.new("RGB", size, (200, 10, 60)), "a")
    assert min(read.shape[1:]) >= 1
    assert max(read.shape[1:]) <= 96
    with torch.inference_mode():
        assert torch.isfinite(encoder.encode_picture(encoder.picture_batch([read])).pooled).all()


def test_address_and_sizes_are_those_of_torchvision() -> None:
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    published = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    assert published.url == FasterRCNN.hub.address
    with torch.device("meta"):
        model = FasterRCNN()._model()
    n_parameters = sum(value.numel() for value in model.parameters())
    assert n_parameters == published.meta["num_params"] == 41_755_286
    assert (model.transform.min_size, model.transform.max_size) == ((800,), 1333)
    assert (model.roi_heads.score_thresh, model.roi_heads.nms_thresh) == (0.05, 0.5)
    assert model.roi_heads.detections_per_img == 49


def test_settings_are_json(encoder: FasterRCNN) -> None:
    settings = json.loads(json.dumps(encoder.settings))
    assert settings["region"] == {
        "n": 49,
        "score": 0.05,
        "suppression": 0.5,
        "without_box": "whole picture",
    }


def test_weights_of_something_else_and_options_that_do_not_suit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"E406 .*lacks backbone"):
        Small(Options(weights=tmp_path / "other.pth")).load()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(DataError, match=r"E401 .*258fb6c6"):
        FasterRCNN().load()
    with pytest.raises(ConfigError, match="FasterRCNN takes no preprocess; it takes tokens"):
        FasterRCNN(Options(preprocess="pad"))
    with pytest.raises(UnknownNameError, match="variant of FasterRCNN"):
        FasterRCNN(Options(variant="grid"))
