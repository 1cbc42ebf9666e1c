"""Architecture read off the tensors of a checkpoint, once they bear our names: the same for every foreign layout."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vlbeit.errors import DataError, UsageError
from vlbeit.models.convert.layout import Converted, Hints, State
from vlbeit.models.convert.tables import SAY_SIZE, hint_grid, image_grid, say
from vlbeit.models.convert.upernet import read_upernet
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.models.presets import PRESETS
from vlbeit.models.spec import EncoderSpec

_BLOCK = "encoder.blocks."
_PUBLISHED_HEADS = {(p.embed_dim, p.depth): p.num_heads for p in PRESETS.values() if p.name != "tiny"}


def read_encoder(
    state: State, hints: Hints, *, shared: bool = False, grid: tuple[int, int] | None = None
) -> EncoderSpec:
    """The spec of the encoder whose tensors these are.

    Args:
        state: tensors under our names.
        hints: what they cannot tell.
        shared: one position table serves all layers.
        grid: rows and columns of patches where the layout knows them already.

    Raises:
        DataError: a tensor is missing or has a wrong shape.
        UsageError: a hint is needed, or contradicts the tensors; it is named.
    """
    patches = _tensor(state, "encoder.patch_embed.proj.weight", 4)
    dim, channels, height, patch_size = patches.shape
    if channels != 3 or height != patch_size:
        raise DataError(f"patch_embed.proj.weight has shape {list(patches.shape)}: not square patches of 3 channels")
    depth = _depth(state)
    grid, positions = _positions(state, hints, patch_size, shared, grid)
    experts, fused_layers = _experts(state, depth)
    hidden = _tensor(state, f"{_BLOCK}0.experts.{experts[0]}.mlp.fc1.weight", 2).shape[0]
    words = state.get("encoder.text_embed.word_embeddings.weight")
    types = state.get("encoder.type_embed.weight")
    return EncoderSpec(
        embed_dim=dim,
        depth=depth,
        num_heads=_num_heads(state, dim, depth, hints),
        patch_size=patch_size,
        image_size=(grid[0] * patch_size, grid[1] * patch_size),
        mlp_ratio=mlp_ratio(hidden, dim),
        layer_scale=0.1 if f"{_BLOCK}0.gamma_1" in state else 0.0,
        experts=experts,
        fused_layers=fused_layers,
        positions=positions,
        vocab_size=None if words is None else words.shape[0],
        text_positions=EncoderSpec.text_positions if words is None else _text_positions(state),
        mask_token="encoder.mask_token" in state,
        final_norm="encoder.norm.weight" in state,
        token_types=EncoderSpec.token_types if types is None else types.shape[0],
    )


def read_heads(state: State, spec: EncoderSpec, hints: Hints) -> dict[str, dict[str, Any]]:
    """Specs of all heads that the tensors make, by name. Raises DataError for tensors of a wrong shape."""
    found: dict[str, dict[str, Any]] = {}
    if "heads.masked_patch.weight" in state:
        out, dim = _tensor(state, "heads.masked_patch.weight", 2).shape
        found["masked_patch"] = {"kind": "masked_patch", "dim": dim, "dim_out": out}
    if any(name.startswith("heads.classification.") for name in state):
        found["classification"] = _classification(state, spec)
    if "heads.pooler.dense.weight" in state:
        found["pooler"] = {"kind": "pooler", "dim": spec.embed_dim}
    if "heads.mlm.decoder.weight" in state:
        vocab_size, dim = _tensor(state, "heads.mlm.decoder.weight", 2).shape
        found["mlm"] = {"kind": "mlm", "dim": dim, "vocab_size": vocab_size}
    for name in ("contrast", "contrast_fused"):
        if f"heads.{name}.text.weight" in state and f"heads.{name}.image.weight" in state:
            found[name] = {"kind": "contrast", "dim": spec.embed_dim}
    if "heads.match.weight" in state:
        found["match"] = {"kind": "match", "dim": spec.embed_dim}
    if "heads.answer.3.weight" in state:
        answers = _tensor(state, "heads.answer.3.weight", 2).shape[0]
        found["answer"] = {"kind": "vqa", "dim": spec.embed_dim, "num_answers": answers}
    if "heads.pair.3.weight" in state:
        classes = _tensor(state, "heads.pair.3.weight", 2).shape[0]
        found["pair"] = {"kind": "pair", "dim": spec.embed_dim, "num_classes": classes}
    if "heads.aggregation.blocks.0.attn.qkv.weight" in state:
        found["aggregation"] = _aggregation(state, spec, hints)
    return found | read_upernet(state, spec, hints)


def settle(
    layout: str,
    state: State,
    sources: dict[str, tuple[str, ...]],
    unexpected: list[str],
    spec: EncoderSpec,
    heads: dict[str, dict[str, Any]],
    normalize: str,
) -> Converted:
    """Hold the tensors against the model that they describe: what is missing, and what has no place.

    Raises DataError for a tensor of a wrong shape.
    """
    with torch.device("meta"):
        model = nn.ModuleDict({"encoder": MoMEEncoder(spec), "heads": Heads(heads)})
    wanted = model.state_dict()
    kept: State = {}
    for name, value in state.items():
        theirs = sources.get(name, (name,))
        if name not in wanted:
            unexpected = [*unexpected, *theirs]
        elif wanted[name].shape != value.shape:
            raise DataError(
                f"{theirs[0]} has shape {list(value.shape)}, where the other tensors want {list(wanted[name].shape)}"
            )
        else:
            kept[name] = value
    missing = [name for name in wanted if name not in kept]
    description = {"encoder": spec.to_dict(), "heads": heads, "normalize": normalize}
    renamed = {name: theirs for name, theirs in sources.items() if name in kept and theirs != (name,)}
    return Converted(layout, description, kept, renamed, missing, sorted(set(unexpected)))


def _tensor(state: State, name: str, dimensions: int) -> Tensor:
    value = state.get(name)
    if value is None:
        raise DataError(f"it has no {name.removeprefix('encoder.')}: not a whole checkpoint")
    if value.ndim != dimensions or 0 in value.shape:
        raise DataError(f"{name} has shape {list(value.shape)}, where {dimensions} dimensions are wanted")
    return value


def _depth(state: State) -> int:
    numbers = {int(name.split(".")[2]) for name in state if name.startswith(_BLOCK)}
    lost = sorted(set(range(min(max(numbers, default=0), 1000))) - numbers)
    if lost or not numbers or max(numbers) >= 1000:
        raise DataError(f"it has blocks {_some(sorted(numbers))}: not a whole checkpoint")
    return max(numbers) + 1


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:3])) + (f", ..., {numbers[-1]}" if len(numbers) > 3 else "") or "none"


def _positions(
    state: State, hints: Hints, patch_size: int, shared: bool, grid: tuple[int, int] | None
) -> tuple[tuple[int, int], str]:
    """Grid of patches and kind of positions."""
    table, absolute = state.get("encoder.rel_pos.0.image"), state.get("encoder.pos_embed")
    if (table is None) == (absolute is None):
        both = "both absolute positions and position tables" if table is not None else "no positions of either kind"
        raise DataError(f"it has {both}: no BEiT or VLMo that was published has")
    if table is not None:
        name = "relative_position_bias_table"
        rows = _tensor(state, "encoder.rel_pos.0.image", 2).shape[0]
        return grid or image_grid(rows, patch_size, hints, name), "shared" if shared else "per_layer"
    patches = _tensor(state, "encoder.pos_embed", 3).shape[1] - 1
    return absolute_grid(patches, patch_size, hints, "pos_embed"), "absolute"


def absolute_grid(patches: int, patch_size: int, hints: Hints, name: str) -> tuple[int, int]:
    """Rows and columns of so many patches: those of `image_size`, else a square.

    Raises UsageError, calling the positions `name`, where a hint is needed or does not fit.
    """
    if hints.image_size is not None:
        grid = hint_grid(hints.image_size, patch_size)
        if grid[0] * grid[1] != patches:
            raise UsageError(
                f"{name} has {patches} patches, image_size={hints.image_size} would have {grid}; leave it out"
            )
        return grid
    side = math.isqrt(patches)
    if side * side != patches:
        raise UsageError(f"{name} has {patches} patches, no square. {SAY_SIZE}")
    return (side, side)


def _experts(state: State, depth: int) -> tuple[tuple[str, ...], int]:
    """Modalities with an expert in every block, and how many top blocks own a fused one."""
    owned = [
        {name.split(".")[4] for name in state if name.startswith(f"{_BLOCK}{index}.experts.")} for index in range(depth)
    ]
    experts = tuple(name for name in ("image", "text") if name in owned[0])
    fused = [index for index, names in enumerate(owned) if "fused" in names]
    if not experts or any(set(experts) - names for names in owned):
        raise DataError(f"its blocks have no feed-forward part, or not all the same: {owned[0] or 'none in the first'}")
    if fused != list(range(depth - len(fused), depth)):
        raise DataError(f"blocks {_some(fused)} have a vision-language expert: only the top ones can")
    return experts, len(fused)


def _num_heads(state: State, dim: int, depth: int, hints: Hints) -> int:
    table = state.get("encoder.rel_pos.0.image")
    if table is None:
        return absolute_heads(dim, _PUBLISHED_HEADS.get((dim, depth)), hints, f"model is {dim} wide and {depth} deep")
    heads = _tensor(state, "encoder.rel_pos.0.image", 2).shape[1]
    if hints.num_heads not in (None, heads):
        raise UsageError(f"num_heads={hints.num_heads}, but the position tables are of {heads}: leave it out")
    if dim % heads:
        raise DataError(f"num_heads={heads} does not divide the width {dim}")
    return heads


def absolute_heads(dim: int, published: int | None, hints: Hints, known: str) -> int:
    """Attention heads where the positions do not tell: those of the hint, else those published for such sizes.

    Raises UsageError where there are neither, with `known` to end "no published ...", or where they do not divide.
    """
    heads = hints.num_heads or published
    if heads is None:
        raise UsageError(
            f"absolute positions do not tell the number of attention heads, and no published {known}; "
            f"{say('num_heads=12', '--num-heads 12')}"
        )
    if heads < 1 or dim % heads:
        raise UsageError(f"num_heads={heads} does not divide the width {dim}")
    return heads


def _text_positions(state: State) -> int:
    table = state.get("encoder.rel_pos.0.text")
    if table is not None:
        return table.shape[0] // 2
    return _tensor(state, "encoder.text_embed.position_embeddings.weight", 2).shape[0]


def mlp_ratio(hidden: int, dim: int) -> float:
    """`mlp_ratio` that makes int(dim * ratio) the hidden width again."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _classification(state: State, spec: EncoderSpec) -> dict[str, Any]:
    """Mean pooling with a norm of its own, or, after a final norm, the CLS token."""
    weight = state.get("heads.classification.fc.weight")
    head = {"kind": "classification", "dim": spec.embed_dim, "num_classes": 0 if weight is None else weight.shape[0]}
    return head if "heads.classification.fc_norm.weight" in state else {**head, "pool": "token"}


def _aggregation(state: State, spec: EncoderSpec, hints: Hints) -> dict[str, Any]:
    """BEiT v2's extra blocks; they tap three blocks below the top, as published (9 of 12, 21 of 24), unless told."""
    prefix = "heads.aggregation.blocks."
    hidden = _tensor(state, f"{prefix}0.experts.image.mlp.fc1.weight", 2).shape[0]
    early = hints.early_layers or max(1, spec.depth - 3)
    if not 0 < early <= spec.depth:
        raise UsageError(f"early_layers={early} is not one of the {spec.depth} blocks of the file")
    return {
        "kind": "patch_aggregation",
        "dim": spec.embed_dim,
        "num_heads": spec.num_heads,
        "hidden": hidden,
        "layers": len({name.split(".")[3] for name in state if name.startswith(prefix)}),
        "layer_scale": 0.1 if f"{prefix}0.gamma_1" in state else 0.0,
        "early_layers": early,
    }
