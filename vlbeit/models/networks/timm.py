"""Image networks of timm.

Legend: B batch, C width of the network.
"""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import Tensor, nn

from vlbeit.errors import UsageError


class ImageNetwork(nn.Module):
    """The last feature map of a network, after its final norm where there is one."""

    def __init__(self, name: str, facts: dict[str, Any], size: tuple[int, int], weights: str = "none") -> None:
        super().__init__()
        options: dict[str, Any] = {"pretrained": weights != "none", "num_classes": 0}
        if weights not in ("", "none"):
            options["pretrained_cfg_overlay"] = {"file": weights}
        try:
            self.network = timm.create_model(name, img_size=size, **options)
        except TypeError:  # a network that takes any size, such as a ResNet, knows no img_size
            self.network = timm.create_model(name, **options)
        self.network.prune_intermediate_layers(1, prune_norm=False, prune_head=True)

    @staticmethod
    def describe(name: str, weights: str) -> dict[str, Any]:
        """`mean` and `std` of the pictures that the network was trained on. UsageError for an unknown name."""
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise UsageError(f"timm has no model {name}; nearest: {', '.join(near) or 'see timm.list_models()'}")
        known = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
        return {"mean": list(known.mean), "std": list(known.std)}

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """[B, 3, height, width] -> [B, C, rows, columns]."""
        return self.network.forward_intermediates(image_BCHW, indices=1, norm=True, intermediates_only=True)[-1]

    def resize(self, size: tuple[int, int]) -> None:
        """Follow another picture size."""
        if hasattr(self.network, "set_input_size"):
            self.network.set_input_size(img_size=size)
