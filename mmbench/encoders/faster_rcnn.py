"""Faster R-CNN: vectors of the things in a picture, one per region.

Ren et al., NeurIPS 2015. https://arxiv.org/abs/1506.01497, on a ResNet-50 with a feature pyramid
(Lin et al., CVPR 2017. https://arxiv.org/abs/1612.03144); weights of torchvision (COCO, 91 labels).

    boxes    at most 49, of score 0.05 or more after non-maximum suppression at 0.5, by score
    regions  v = relu(fc7(relu(fc6(RoIAlign(pyramid, box))))) [1024] of each, as the box head has it
    pooled   the mean of the regions

1024 dimensions, 41.8 M parameters. MMSR (https://arxiv.org/abs/2403.17372) takes 49 regions at this
threshold and does not say what it does where there are fewer; then the rest is zero and masked.
A picture without any box has one region: the whole picture. "whole-first" puts the whole picture
before all others; "fill" takes the best proposals of the first stage until there are 49.

Pictures keep their shape: the short side becomes 800 pixels, the long one at most 1333. One picture
at a time goes through the network, since padding to the size of another changes its regions, and
always in float32, where the choice of boxes is not at the mercy of rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmbench.encoders.addressed import find_addressed
from mmbench.encoders.base import register_encoder
from mmbench.encoders.loading import Weights
from mmbench.encoders.neural import Batch, Encoded, Hub, NeuralEncoder
from mmbench.encoders.timm_vision import load_weights

N_LABELS = 91
WIDTH = 1024
MAX_PIXELS = 2**24
"""Pictures of more pixels are reduced by a whole number first, to bound the memory per thread."""


@register_encoder("faster-rcnn")
class FasterRCNN(NeuralEncoder):
    """Mean of the regions [1024]; regions [49, 1024] and which of them there are.

    Class attributes: `n_regions`, `threshold` of the score, and the pixels of the sides.
    """

    hub = Hub(
        "torchvision/fasterrcnn_resnet50_fpn",
        revision="COCO_V1",
        licence="BSD-3-Clause",
        address="https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
    )
    modalities = ("visual",)
    learns = False
    variants = ("regions", "whole-first", "fill")
    takes = frozenset({"tokens"})
    citation = "Ren et al., NeurIPS 2015; Lin et al., CVPR 2017"
    n_regions: ClassVar[int] = 49
    threshold: ClassVar[float] = 0.05
    short_side: ClassVar[int] = 800
    long_side: ClassVar[int] = 1333
    weights: Weights

    def load(self) -> None:
        """Read the weights.

        Raises:
            DataError: E401 to E406, as of all encoders.
        """
        self.weights = find_addressed(self.hub, self.options)
        model = self._model()
        load_weights(model, self.weights)
        self.module = model.eval()

    def _model(self) -> Any:
        from torchvision.models.detection import FasterRCNN as Detector  # type: ignore[import-untyped]
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone  # type: ignore[import-untyped]
        from torchvision.ops import FrozenBatchNorm2d  # type: ignore[import-untyped]

        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d
        )
        for module in backbone.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = 0.0  # these weights were trained so; torchvision does the same
        return Detector(
            backbone,
            num_classes=N_LABELS,
            min_size=self.short_side,
            max_size=self.long_side,
            box_score_thresh=self.threshold,
            box_detections_per_img=self.n_regions,
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that determines the result, after `load`."""
        import torchvision  # type: ignore[import-untyped]

        return {
            "version": 1,
            **self.weights.facts,
            "architecture": "fasterrcnn_resnet50_fpn",
            "torchvision": torchvision.__version__,
            "variant": self.variant,
            "pooling": "mean of the regions",
            "l2_normalised": False,
            "region": {
                "n": self.n_regions,
                "score": self.threshold,
                "suppression": 0.5,
                "without_box": "whole picture",
            },
            "image": {
                "short_side": self.short_side,
                "long_side": self.long_side,
                "interpolation": "bilinear, not antialiased",
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
                "max_pixels": MAX_PIXELS,
                "max_ratio": self._max_ratio,
            },
        }

    @property
    def _max_ratio(self) -> int:
        """A strip with more times its width in length is squashed: it would have no width left."""
        return self.long_side // 2

    def read_picture(self, picture: Image.Image, item: str) -> Tensor:
        """An upright RGB picture, normalised and resized [3, h, w]."""
        longest = self._max_ratio * min(picture.size)
        if max(picture.size) > longest:
            width, height = (min(side, longest) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BOX)
        if picture.width * picture.height > MAX_PIXELS:
            pixels = picture.width * picture.height
            picture = picture.reduce(int(np.ceil(np.sqrt(pixels / MAX_PIXELS))))
        values = torch.from_numpy(np.array(picture).transpose(2, 0, 1)).contiguous()
        transform: Any = self.module.transform
        resized: Tensor = transform.resize(transform.normalize(values.float().div_(255)))[0]
        return resized

    def picture_batch(self, pictures: Sequence[Tensor]) -> Batch:
        """Pictures padded to the largest [B, 3, H, W], and their own "sizes" [B, 2]."""
        sizes = torch.tensor([picture.shape[1:] for picture in pictures])
        height, width = (int(side) for side in sizes.amax(dim=0))
        pixels = torch.zeros(len(pictures), 3, height, width)
        for row, picture in zip(pixels, pictures, strict=True):
            row[:, : picture.shape[1], : picture.shape[2]] = picture
        return {"pixel_values": pixels, "sizes": sizes}

    def encode_picture(self, pictures: Batch) -> Encoded:
        """The mean of the regions [B, 1024] and, where asked for, the regions [B, 49, 1024]."""
        pixels, sizes = pictures["pixel_values"], pictures["sizes"].tolist()
        regions = pixels.new_zeros(len(pixels), self.n_regions, WIDTH, dtype=torch.float32)
        mask = torch.zeros(regions.shape[:2], dtype=torch.bool, device=pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            for row, (height, width) in enumerate(sizes):
                found = self._regions(pixels[row, :, :height, :width].float())
                regions[row, : len(found)] = found
                mask[row, : len(found)] = True
        pooled = regions.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return Encoded(pooled, regions, mask) if self.options.tokens else Encoded(pooled)

    def _regions(self, picture: Tensor) -> Tensor:
        """Vectors of the regions of one picture [n, 1024], 1 <= n <= 49."""
        from torchvision.models.detection.image_list import ImageList  # type: ignore[import-untyped]

        model: Any = self.module
        height, width = picture.shape[1:]
        images = ImageList(model.transform.batch_images([picture], 32), [(height, width)])
        pyramid = model.backbone(images.tensors)
        proposals, _ = model.rpn(images, pyramid)
        heads = model.roi_heads
        boxes = heads(pyramid, proposals, images.image_sizes)[0][0]["boxes"]
        whole = boxes.new_tensor([[0, 0, width, height]])
        if self.variant == "fill":
            boxes = torch.cat([boxes, proposals[0]])
        if self.variant == "whole-first" or not len(boxes):
            boxes = torch.cat([whole, boxes])
        boxes = boxes[: self.n_regions]
        vectors: Tensor = heads.box_head(heads.box_roi_pool(pyramid, [boxes], images.image_sizes))
        return vectors
