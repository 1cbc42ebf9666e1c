"""Pictures to plain vectors: what probes look at.

Legend: B batch, L tokens (CLS + patches), D width, C width of a foreign tower, F width of all features side by side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.towers import TowerPatches

_NOT_OF_FEATURES = ("drop_path", "init_std", "grad_checkpointing", "layer_scale", "mask_token", "final_norm")


def layer_features(encoder: MoMEEncoder, image_BCHW: Tensor, blocks: Sequence[int]) -> list[Tensor]:
    """CLS beside the mean of the patches, [B, 2D], of what the blocks (0-based) put out, without the final norm."""
    taps = encoder.forward_intermediates(encoder.embed_image(image_BCHW), list(blocks))
    return [torch.cat([tap.x_BLD[:, 0], tap.x_BLD[:, 1:].mean(1)], dim=1) for tap in taps]


def patch_mean(encoder: MoMEEncoder, image_BCHW: Tensor) -> Tensor:
    """Mean of the patches after the last block and the final norm, [B, D]."""
    return encoder(encoder.embed_image(image_BCHW)).x_BLD[:, 1:].mean(1)


def tower_features(encoder: MoMEEncoder, image_BCHW: Tensor) -> Tensor:
    """Mean over the map of a foreign image tower, [B, C]: the network as it came, before any block of ours."""
    assert isinstance(encoder.patch_embed, TowerPatches), "it has none"
    return encoder.patch_embed.features(image_BCHW).mean((2, 3))


def tower_width(encoder: MoMEEncoder) -> int | None:
    """C of the foreign image tower; None without one."""
    return encoder.patch_embed.proj.in_features if isinstance(encoder.patch_embed, TowerPatches) else None


def digest(encoder: MoMEEncoder, others: Iterable[nn.Module] = ()) -> str:
    """SHA-256, hexadecimal, of everything that the features of a picture hang on: architecture and weights."""
    spec: dict[str, Any] = {k: v for k, v in encoder.spec.to_dict().items() if k not in _NOT_OF_FEATURES}
    result = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
    for module in (encoder, *others):
        for name, value in sorted(module.state_dict().items()):
            result.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            result.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return result.hexdigest()
