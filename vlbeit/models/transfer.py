"""From the weights of one run to the start of the next: what is taken, adapted, new and left behind."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

from vlbeit.errors import UsageError
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.towers import IMAGE_TOWER, resized
from vlbeit.nn.relpos import image_rows

State = dict[str, Tensor]


@dataclass
class TransferReport:
    """Names of parameters by what happened to them."""

    loaded: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)  # one table copied to every layer, or resized
    new: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line for people, new and unused parts by their first two names."""
        parts = [f"{len(self.loaded)} tensors taken"]
        for word, names in (("adapted", self.adapted), ("new", self.new), ("not used", self.left)):
            if names:
                parts.append(f"{len(names)} {word} ({', '.join(_families(names))})")
        return ", ".join(parts)


def _families(names: list[str]) -> list[str]:
    """`encoder.blocks.3.experts.text.mlp.fc1.weight` -> `text experts`, and the like; each once, in order."""
    out: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        if "experts" in parts:
            out[f"{parts[parts.index('experts') + 1]} experts"] = None
        elif parts[0] == "heads":
            out[f"head {parts[1]}"] = None
        else:
            out[parts[1] if len(parts) > 1 else parts[0]] = None
    return list(out)


def check_fits(source: EncoderSpec, target: EncoderSpec, origin: str) -> None:
    """Raise UsageError naming the numbers unless the two encoders have the same width, depth, heads and patches.

    The image tower may be replaced by a foreign one, which brings weights of its own; by ours it may not. A text tower
    goes with its tokenizer.
    """
    patches = ("patch_size",) if source.image_tower == target.image_tower == "own" else ()
    for name in ("embed_dim", "depth", "num_heads", "mlp_ratio", *patches):
        ours, theirs = getattr(target, name), getattr(source, name)
        if ours != theirs:
            raise UsageError(
                f"init={origin} has model.{name}={theirs}, this run has {ours}: "
                f"set model.{name}={theirs}, choose the same model=, or init=none"
            )
    if bool(source.layer_scale) != bool(target.layer_scale):
        raise UsageError(
            f"init={origin} has model.layer_scale={source.layer_scale}, this run {target.layer_scale}: "
            "one has the scales and the other has none; choose the same model="
        )
    if ("absolute" in (source.positions, target.positions)) and source.positions != target.positions:
        raise UsageError(
            f"init={origin} has positions={source.positions}, this run {target.positions}: choose the same model="
        )
    if "image" in target.experts and target.image_tower == "own" != source.image_tower:
        raise UsageError(
            f"init={origin} has model.image_tower={source.image_tower}, this run own: "
            f"set model.image_tower={source.image_tower}, or init=none"
        )
    both_text = source.vocab_size is not None and target.vocab_size is not None
    if both_text and source.text_tower != target.text_tower:
        raise UsageError(
            f"init={origin} has model.text_tower={source.text_tower} and its tokenizer, this run {target.text_tower}: "
            f"set model.text_tower={source.text_tower}, start from a run without text, or init=none"
        )
    if both_text and source.vocab_size != target.vocab_size:
        raise UsageError(
            f"init={origin} has a vocabulary of {source.vocab_size}, this run {target.vocab_size}: use its tokenizer"
        )
    if both_text and source.text_positions != target.text_positions:
        raise UsageError(
            f"init={origin} has text.positions={source.text_positions}, this run {target.text_positions}: "
            f"set text.positions={source.text_positions}"
        )


@torch.no_grad()
def transfer(objective: nn.Module, state: State, source: EncoderSpec, target: EncoderSpec) -> TransferReport:
    """Copy into `objective` every parameter of `state` that has a place there, adapting positions on the way.

    One position table becomes a table per layer before any resizing; image tables follow the new patch grid
    (geometric sequence for relative tables, as BEiT; bicubic for absolute ones). A head is taken where its shapes
    are the same.
    """
    report = TransferReport()
    state = _adapt_positions(dict(state), source, target, report)
    left = _drop_other_towers(state, source, target)
    if target.vocab_size is None:
        _fold_type(state, report)
    own = objective.state_dict()
    for name, value in own.items():
        given = state.pop(name, None)
        if given is None or given.shape != value.shape:
            report.new.append(name)
            continue
        value.copy_(given)
        if name not in report.adapted:
            report.loaded.append(name)
    report.adapted = [name for name in report.adapted if name in own]
    lost = [name for name in report.new if f".{IMAGE_TOWER}." in name]
    if lost and source.image_tower == target.image_tower:
        raise UsageError(f"model.image_tower={target.image_tower} cannot follow data.image_size={target.image_size}")
    report.left = sorted([*state, *left])
    if not report.loaded:
        raise UsageError("no weight of init fits this run: is it a run of another kind?")
    return report


def _adapt_positions(state: State, source: EncoderSpec, target: EncoderSpec, report: TransferReport) -> State:
    if source.positions == "shared" and target.positions == "per_layer":
        for part in ("image", "cross", "text"):
            table = state.pop(f"encoder.rel_pos.0.{part}", None)
            for layer in range(target.depth if table is not None else 0):
                state[f"encoder.rel_pos.{layer}.{part}"] = table.clone()  # type: ignore[union-attr]
                report.adapted.append(f"encoder.rel_pos.{layer}.{part}")
    same_tower = target.image_tower == source.image_tower != "own"
    if same_tower and target.image_size is not None and target.image_size != source.image_size:
        for name, value in resized(state, source, target.image_size).items():
            if name not in state or value.shape != state[name].shape:
                report.adapted.append(name)
            state[name] = value
    if source.grid and target.grid and source.grid != target.grid:
        for name, value in state.items():
            if name.startswith("encoder.rel_pos.") and name.endswith(".image"):
                shape = (image_rows(target.grid), value.shape[1])
                state[name] = resize_rel_pos_bias_table(value, target.grid, shape, old_window_size=source.grid)
                report.adapted.append(name)
            elif name == "encoder.pos_embed":
                state[name] = resample_abs_pos_embed(value, list(target.grid), list(source.grid), num_prefix_tokens=1)
                report.adapted.append(name)
    return state


def _drop_other_towers(state: State, source: EncoderSpec, target: EncoderSpec) -> list[str]:
    """Remove the embeddings whose place another tower takes in `target`; returns their names."""
    replaced = []
    for modality, part in (("image", "patch_embed"), ("text", "text_embed")):
        if getattr(source, f"{modality}_tower") != getattr(target, f"{modality}_tower"):
            replaced += [name for name in state if name.startswith(f"encoder.{part}.")]
    for name in replaced:
        del state[name]
    return replaced


def _fold_type(state: State, report: TransferReport) -> None:
    """An image tower has no type embedding: what was learned there goes where it is added in the image pass."""
    types = state.pop("encoder.type_embed.weight", None)
    for name in ("encoder.cls_token", "encoder.patch_embed.proj.bias"):
        if types is not None and name in state:
            state[name] = state[name] + types[1]
            report.adapted.append(name)
