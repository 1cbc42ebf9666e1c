"""The image part of any of our checkpoints: what other libraries' BEiT models can hold of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch

from vlbeit.errors import UsageError
from vlbeit.models.convert.layout import State
from vlbeit.models.convert.upernet import PARTS, POOL_SCALES, has_upernet
from vlbeit.models.spec import EncoderSpec

TYPED = ("encoder.cls_token", "encoder.patch_embed.proj.bias")
"""What the type of pictures' tokens goes into."""


class ImagePart(NamedTuple):
    """An encoder for images alone, and its heads by name: `masked_patch`, `classification`, or those of segmentation.

    An encoder without a final norm has a classification head, if of 0 classes, the norm of what is pooled, unless it
    has those of segmentation.
    """

    spec: EncoderSpec
    heads: dict[str, dict[str, Any]]

    @property
    def classes(self) -> int:
        """Width of the classifier; 0 without one."""
        head = self.heads.get("segmentation") or self.heads.get("classification", {})
        return head.get("num_classes", 0)


def image_part(description: dict[str, Any], target: str) -> ImagePart:
    """What of a checkpoint goes to the library `target`.

    Raises UsageError where that is nothing: a tokenizer, text alone, or patches embedded by a foreign network.
    """
    if "encoder" not in description:
        raise UsageError(f"there is no image tower here, so that nothing would go to {target}: name another checkpoint")
    source = EncoderSpec.from_dict(description["encoder"])
    if source.image_size is None or "image" not in source.experts:
        raise UsageError(f"this encoder is for text alone, so that nothing would go to {target}: name an image tower")
    if source.image_tower != "own":
        raise UsageError(
            f"patches are embedded by {source.image_tower} here, which a BEiT of {target} has no place for: "
            "only towers with model.image_tower=own can go there"
        )
    spec = replace(source.image_alone(), mask_token=source.mask_token and source.vocab_size is None)
    heads = description.get("heads", {})
    if target == "transformers" and _fits_segmentation(description, spec):
        return ImagePart(spec, {name: heads[name] for name in PARTS if name in heads})
    classification = heads.get("classification", {})
    if source.final_norm:
        pools_token = {"classification": classification} if classification.get("pool") == "token" else {}
        masked = {"masked_patch": heads["masked_patch"]} if "masked_patch" in heads else {}
        return ImagePart(spec, pools_token or masked)
    pooled = {"kind": "classification", "dim": spec.embed_dim, "num_classes": 0}
    return ImagePart(spec, {"classification": classification or pooled})


def _fits_segmentation(description: dict[str, Any], spec: EncoderSpec) -> bool:
    """Whether the decoder is the one of transformers: UPerNet, as wide as the tower, pooled to the usual scales."""
    decoder = description.get("heads", {}).get("segmentation", {})
    usual = list(decoder.get("pool_scales", POOL_SCALES)) == POOL_SCALES
    return has_upernet(description) and usual and (decoder.get("channels") or spec.embed_dim) == spec.embed_dim


@torch.no_grad()
def image_state(part: ImagePart, state: State) -> State:
    """The tensors of the image part under our names.

    What a vl run adds to its pictures' tokens as their type goes into the CLS token and the patches' bias. A norm of
    what is pooled that is not there, as in segmentation backbones, is a new one: ones and zeros.
    """
    blocks = ("norm1", "attn", "gamma_1", "gamma_2")
    out = {}
    for name, value in state.items():
        root, _, rest = name.partition(".")
        place = rest.split(".")
        of_block = place[0] == "blocks" and (place[2] in blocks or place[2:4] == ["experts", "image"])
        of_table = place[0] == "rel_pos" and place[-1] == "image"
        of_stem = place[0] in ("cls_token", "pos_embed", "patch_embed") or (
            (place[0] == "mask_token" and part.spec.mask_token) or (place[0] == "norm" and part.spec.final_norm)
        )
        if (root == "encoder" and (of_block or of_table or of_stem)) or (root == "heads" and place[0] in part.heads):
            out[name] = value
    types = state.get("encoder.type_embed.weight")
    for name in TYPED:
        if types is not None:
            out[name] = out[name] + types[1]
    if "classification" in part.heads and not part.spec.final_norm:
        like = out["encoder.cls_token"]
        out.setdefault("heads.classification.fc_norm.weight", torch.ones(part.spec.embed_dim, dtype=like.dtype))
        out.setdefault("heads.classification.fc_norm.bias", torch.zeros(part.spec.embed_dim, dtype=like.dtype))
    return out
