"""What tasks on the joint pass of text and picture have in common."""

from __future__ import annotations

from vlbeit.models.encoder import MoMEEncoder


def freeze_idle_experts(encoder: MoMEEncoder) -> None:
    """Freeze the experts that a joint pass never runs through: text and image, where a block owns a fused one.

    They are kept, so that the run still encodes texts and pictures alone.
    """
    for block in encoder.blocks:
        if "fused" in block.names:
            for name, expert in block.experts.items():
                expert.requires_grad_(name == "fused")
