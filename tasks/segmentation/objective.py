"""The segmentation objective: taps of the image pass, a decoder, cross-entropy over the labelled pixels.

Legend: B batch, K classes, h, w of the logits, H, W of the labels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlbeit.data.drawing import IGNORED
from vlbeit.errors import UsageError
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.models.pyramid import resized, taps, to_map
from vlbeit.nn.batch_norm import SyncedBatchNorm, average_statistics
from vlbeit.objectives.base import Objective
from vlbeit.types import Batch, StepOutput

from .inference import Windows, segment


class SegmentationObjective(Objective):
    """Maps of four blocks, without the final norm, to a class per pixel (UPerNet or SETR-PUP; BEiT, 2106.08254).

    Args:
        encoder: with the image expert and no final norm.
        heads: `segmentation`, `necks` before it where it takes a pyramid, `auxiliary` where one trains beside it.
        windows: what the tower sees of a picture at evaluation.
        auxiliary_weight: of the auxiliary loss.
    """

    def __init__(self, encoder: MoMEEncoder, heads: Heads, windows: Windows, auxiliary_weight: float = 0.4) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        self.windows = windows
        self.auxiliary_weight = auxiliary_weight
        self.taps: list[int] = heads.specs.get("necks", {}).get("taps") or taps(encoder.spec.depth)
        unused: list[nn.ModuleList] = [encoder.blocks, *([encoder.rel_pos] if len(encoder.rel_pos) > 1 else [])]
        for module in unused:  # above the last tap nothing gets a gradient
            module[max(self.taps) + 1 :].requires_grad_(False)

    def logits(self, batch: Batch) -> Tensor:
        """`image` [B, 3, height, width] -> logits [B, K, h, w]: a quarter of the picture's size, SETR-PUP's all of it.

        With patches of 16 pixels; the size is in proportion to that of a patch.
        """
        return self._decoded(self._maps(batch["image"]))

    def predict(self, batch: Batch) -> list[Tensor]:
        """`views` and `original_size` of every picture -> its classes, int64 [H, W] of the original size."""
        pictures = zip(batch["views"], batch["original_size"], strict=True)
        return segment(lambda image: self.logits({"image": image}), pictures, self.windows, next(self.parameters()))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """`segmentation`, and `auxiliary` where there is one: labelled pixels of the batch.

        differs from the published code (mmsegmentation), which takes the mean over all pixels of a process's batch:
        there a picture with half of its pixels unlabelled counts half.
        """
        labelled = (batch["segments"] != IGNORED).sum()
        return {name: labelled for name in ("segmentation", "auxiliary") if name in self.heads}

    def forward(self, batch: Batch, counts: dict[str, Tensor]) -> StepOutput:
        """Losses `segmentation` and `auxiliary` against `segments` [B, H, W]; logs them and `pixel_accuracy`."""
        self._check_statistics(batch)
        maps, segments_BHW = self._maps(batch["image"]), batch["segments"]
        labelled = self.counts(batch)["segmentation"]
        logits = _at(self._decoded(maps), segments_BHW)
        sums = {"segmentation": _cross_entropy(logits, segments_BHW)}
        weights = {"segmentation": 1.0, "auxiliary": self.auxiliary_weight}
        if "auxiliary" in self.heads:
            sums["auxiliary"] = _cross_entropy(_at(self.heads["auxiliary"](maps), segments_BHW), segments_BHW)
        # an unlabelled pixel is 255, which no class is
        right = (logits.detach().argmax(1) == segments_BHW).sum()
        return StepOutput(
            {name: weights[name] * total / counts[name] for name, total in sums.items()},
            {
                **{name: (total.detach(), labelled) for name, total in sums.items()},
                "pixel_accuracy": (right, labelled),
            },
        )

    def after_step(self) -> None:
        average_statistics(self)

    def describe(self) -> dict[str, Any]:
        return {"encoder": self.encoder.spec.to_dict(), "heads": self.heads.specs}

    def _maps(self, image: Tensor) -> list[Tensor]:
        tokens = self.encoder.embed_image(image)
        return [to_map(tap) for tap in self.encoder.forward_intermediates(tokens, self.taps)]

    def _decoded(self, maps: list[Tensor]) -> Tensor:
        return self.heads["segmentation"](self.heads["necks"](maps) if "necks" in self.heads else maps)

    def _check_statistics(self, batch: Batch) -> None:
        """UsageError where UPerNet, whose coarsest pooling leaves one pixel a picture, would norm that one alone."""
        alone = not any(isinstance(module, SyncedBatchNorm) for module in self.modules())
        if self.training and alone and "necks" in self.heads and len(batch["image"]) == 1:
            raise UsageError(ONE_PICTURE)


ONE_PICTURE = (
    "task.head=upernet takes batch statistics, and has none of one picture: set micro_batch_size= to 2 or more "
    "(global_batch_size= too), or task.head=setr_pup"
)


def _at(logits: Tensor, segments_BHW: Tensor) -> Tensor:
    """Logits at the size of the labels, float32 (or float64)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return resized(logits, segments_BHW.shape[1:])


def _cross_entropy(logits_BKHW: Tensor, segments_BHW: Tensor) -> Tensor:
    """The sum over labelled pixels; 0, with gradients of 0, where there is none."""
    return F.cross_entropy(logits_BKHW, segments_BHW, ignore_index=IGNORED, reduction="sum")
