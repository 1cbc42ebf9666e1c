"""Detection on a plain tower: a feature pyramid of its last map, Faster R-CNN or Mask R-CNN of torchvision on top.

Legend: B batch, D width of the tower, C channels of the pyramid, h, w rows and columns of patches, n boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign

Maps = dict[str, Tensor]
Shape = tuple[int, int]  # height, width in pixels
Target = Mapping[str, Tensor]  # of a picture: boxes [n, 4], labels [n], masks [n, height, width]

_RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors
_REGION, _MASK_REGION = 7, 14  # cells of a box's features
_ROIS = 512  # boxes of a picture that a training step looks at
LEVELS = 5
"""Maps of the pyramid: at 4, 2, 1 and 1/2 times the tower's, and every second cell of the last."""


class FeaturePyramid(nn.Module):
    """The simple feature pyramid of ViTDet (Li et al., arXiv 2203.16527): every level from the last map of the tower.

    At a patch size of 16 the strides are 4, 8, 16, 32 and 64 pixels.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        half, quarter = dim // 2, dim // 4
        self.levels = nn.ModuleList(
            [
                nn.Sequential(
                    _doubling(dim, half), LayerNorm2d(half), nn.GELU(), _doubling(half, quarter),
                    *_output(quarter, channels),
                ),
                nn.Sequential(_doubling(dim, half), *_output(half, channels)),
                nn.Sequential(*_output(dim, channels)),
                # differs from ViTDet: an odd row or column of patches is kept, so that one patch is enough
                nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), *_output(dim, channels)),
            ]
        )  # fmt: skip

    def forward(self, map_BDhw: Tensor) -> Maps:
        """[B, D, h, w] -> `LEVELS` maps [B, C, ...] by name, the finest first, of at least 32 bits."""
        maps = [_full(level(map_BDhw)) for level in self.levels]  # coordinates of anchors take their precision
        maps.append(F.max_pool2d(maps[-1], kernel_size=1, stride=2))
        return {f"level{index}": each for index, each in enumerate(maps)}


class Detector(nn.Module):
    """Feature pyramid, region proposals, and per region a class, a box and, if asked for, a mask.

    As ViTDet's Mask R-CNN: two convolutions in the proposal network, four convolutions and a hidden layer for classes
    and boxes, four convolutions for masks, all with layer norms over channels. Labels are 0..num_classes-1.

    differs from torchvision: a loss is the sum over pictures of each one's mean, not the mean over the regions of a
    batch, so that accumulation over micro-batches gives the same. Where every picture gives as many regions, one is
    the other times the number of pictures; in the mask loss a picture with few boxes weighs as much as one with many.

    Args:
        dim: D.
        num_classes: without the background.
        anchors: sides in pixels, one for each of `LEVELS`.
        channels: C.
        hidden: width of the layer before classes and boxes.
        proposals: boxes of a picture that the proposal network hands on.
        masks: with a mask branch.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        anchors: Sequence[float],
        channels: int = 256,
        hidden: int = 1024,
        proposals: int = 1000,
        masks: bool = False,
    ) -> None:
        super().__init__()
        if len(anchors) != LEVELS:
            raise ValueError(f"{len(anchors)} anchor sides for {LEVELS} levels; give one each")
        self.pyramid = FeaturePyramid(dim, channels)
        generator = AnchorGenerator(tuple((float(side),) for side in anchors), (_RATIOS,) * LEVELS)
        self.rpn = _Proposals(generator, _ProposalHead(channels, len(_RATIOS), conv_depth=2), proposals)
        self.regions = _Regions(channels, hidden, num_classes, masks)

    def losses(self, map_BDhw: Tensor, canvas: Shape, inner: Sequence[Shape], targets: Sequence[Target]) -> Maps:
        """Losses `rpn_objectness`, `rpn_box`, `classifier`, `box` and, with masks, `mask`: sums over the pictures.

        Args:
            map_BDhw: the tower's last map.
            canvas: height and width of the batch's pictures in pixels.
            inner: of each, the height and width at the left and top that are no padding.
            targets: of each, `boxes` as corners in pixels, `labels` and, with masks, `masks`.

        Raises ValueError in evaluation mode: torchvision's proposal network then has no losses.
        """
        if not self.training:
            raise ValueError("a detector has losses in training mode only: call train() first")
        maps = self.pyramid(map_BDhw)
        dtype = maps["level0"].dtype
        # torchvision counts the background as class 0
        shifted = [{**each, "boxes": each["boxes"].to(dtype), "labels": each["labels"] + 1} for each in targets]
        proposals, first = self.rpn(_images(map_BDhw, canvas, inner), maps, shifted)
        second = self.regions.losses(maps, proposals, canvas, shifted)
        return {"rpn_objectness": first["loss_objectness"], "rpn_box": first["loss_rpn_box_reg"], **second}

    @torch.no_grad()
    def detect(self, map_BDhw: Tensor, canvas: Shape, inner: Sequence[Shape]) -> list[dict[str, Tensor]]:
        """Of each picture `boxes` [n, 4] in pixels of the canvas, `scores` [n] falling, `labels` [n], n <= 100.

        Only scores above `regions.score_thresh` (0.05) come out.

        With a mask branch also `masks` [n, 1, 28, 28], probabilities inside the boxes; `paste_masks_in_image` of
        torchvision brings them into a picture. Arguments as for `losses`.
        """
        maps = self.pyramid(map_BDhw)
        proposals, _ = self.rpn(_images(map_BDhw, canvas, inner), maps)
        return self.regions.detect(maps, proposals, canvas, inner)


class _ProposalHead(RPNHead):
    """Its outputs keep the precision of coordinates under autocast."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, boxes = super().forward(x)
        return [_full(each) for each in logits], [_full(each) for each in boxes]


class _Proposals(RegionProposalNetwork):
    """Settings of Faster R-CNN with a feature pyramid; the losses are sums over pictures."""

    def __init__(self, generator: AnchorGenerator, head: nn.Module, proposals: int) -> None:
        per_level = {"training": 2 * proposals, "testing": proposals}
        in_all = {"training": proposals, "testing": proposals}
        super().__init__(generator, head, 0.7, 0.3, 256, 0.5, per_level, in_all, 0.7)

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        sizes = [len(each) for each in labels]
        logits, deltas = objectness.split(sizes), pred_bbox_deltas.split(sizes)
        single = super().compute_loss
        terms = [
            single(logit, delta, [label], [target])
            for logit, delta, label, target in zip(logits, deltas, labels, regression_targets, strict=True)
        ]
        objectness_terms, box_terms = zip(*terms, strict=True)
        return torch.stack(objectness_terms).sum(), torch.stack(box_terms).sum()


class _Regions(RoIHeads):
    """What becomes of proposed boxes, with the settings of Mask R-CNN; the losses are sums over pictures."""

    def __init__(self, channels: int, hidden: int, num_classes: int, masks: bool) -> None:
        names = [f"level{index}" for index in range(LEVELS - 1)]  # the coarsest only proposes
        layers = [channels] * 4
        head = FastRCNNConvFCHead((channels, _REGION, _REGION), layers, [hidden], norm_layer=LayerNorm2d)
        parts: tuple[Any, ...] = (None, None, None)
        if masks:
            parts = (
                MultiScaleRoIAlign(names, _MASK_REGION, 2),
                MaskRCNNHeads(channels, layers, 1, norm_layer=LayerNorm2d),
                MaskRCNNPredictor(channels, channels, num_classes + 1),
            )
        super().__init__(
            MultiScaleRoIAlign(names, _REGION, 2),
            head,
            FastRCNNPredictor(hidden, num_classes + 1),
            0.5, 0.5, _ROIS, 0.25, None,
            0.05, 0.5, 100,
            *parts,
        )  # fmt: skip

    def losses(
        self, maps: Maps, proposals: list[Tensor], canvas: Shape, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """`classifier`, `box` and `mask`."""
        regions, matched, labels, goals = self.select_training_samples(proposals, list(targets))
        logits, deltas = self._classified(maps, regions, canvas)
        sizes = [len(each) for each in labels]
        terms = [
            fastrcnn_loss(logit, delta, [label], [goal]) if len(label) else (logit.sum() * 0, delta.sum() * 0)
            for logit, delta, label, goal in zip(logits.split(sizes), deltas.split(sizes), labels, goals, strict=True)
        ]
        classes, boxes = zip(*terms, strict=True)
        losses = {"classifier": torch.stack(classes).sum(), "box": torch.stack(boxes).sum()}
        if self.has_mask():
            chosen = [label > 0 for label in labels]
            regions, matched = ([e[c] for e, c in zip(each, chosen, strict=True)] for each in (regions, matched))
            losses["mask"] = self._mask_loss(maps, regions, matched, canvas, targets)
        return losses

    def detect(
        self, maps: Maps, proposals: list[Tensor], canvas: Shape, inner: Sequence[Shape]
    ) -> list[dict[str, Tensor]]:
        """Boxes, scores, labels and masks."""
        logits, deltas = self._classified(maps, proposals, canvas)
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, list(inner))
        rows = zip(boxes, scores, labels, strict=True)
        found = [{"boxes": box, "scores": score, "labels": label} for box, score, label in rows]
        if self.has_mask():
            masks = maskrcnn_inference(self._mask_logits(maps, boxes, canvas), labels)
            found = [{**each, "masks": mask} for each, mask in zip(found, masks, strict=True)]
        return [{**each, "labels": each["labels"] - 1} for each in found]

    def _classified(self, maps: Maps, regions: list[Tensor], canvas: Shape) -> tuple[Tensor, Tensor]:
        features = self.box_head(self.box_roi_pool(maps, regions, [canvas] * len(regions)))
        logits, deltas = self.box_predictor(features)
        return _full(logits), _full(deltas)

    def _mask_logits(self, maps: Maps, regions: list[Tensor], canvas: Shape) -> Tensor:
        features = self.mask_roi_pool(maps, regions, [canvas] * len(regions))
        return _full(self.mask_predictor(self.mask_head(features)))

    def _mask_loss(
        self, maps: Maps, regions: list[Tensor], matched: list[Tensor], canvas: Shape, targets: Sequence[Target]
    ) -> Tensor:
        logits = self._mask_logits(maps, regions, canvas).split([len(each) for each in regions])
        terms = [
            maskrcnn_loss(logit, [boxes], [target["masks"]], [target["labels"]], [rows])
            for logit, boxes, rows, target in zip(logits, regions, matched, targets, strict=True)
        ]
        return torch.stack(terms).sum()


def _images(map_BDhw: Tensor, canvas: Shape, inner: Sequence[Shape]) -> ImageList:
    """What torchvision wants to know of the pictures: the canvas, and how much of it each fills. Holds no pixels."""
    return ImageList(map_BDhw.new_empty(1).expand(len(map_BDhw), 3, *canvas), list(inner))


def _full(value: Tensor) -> Tensor:
    """At least 32 bits."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _doubling(dim: int, dim_out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(dim, dim_out, kernel_size=2, stride=2)


def _output(dim: int, channels: int) -> list[nn.Module]:
    """To `channels`, and a look at the neighbours; norms over channels, so that no batch size matters."""
    conv = partial(nn.Conv2d, bias=False)
    return [
        conv(dim, channels, 1), LayerNorm2d(channels), conv(channels, channels, 3, padding=1), LayerNorm2d(channels)
    ]  # fmt: skip
