"""From the weights of one run to the start of the next: what is taken, adapted, new and left behind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlbeit.errors import UsageError
from vlbeit.models.report import LoadReport
from vlbeit.models.resizing import cut_text_table, reorder_rows, resize_embedding, resize_table
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.towers import IMAGE_TOWER, resized
from vlbeit.types import Meta

State = dict[str, Tensor]


_CLASSIFIERS = {  # head -> key of the meta that lists what its rows stand for, and where they are
    "answer": ("answers", "heads.answer.3."),
    "classification": ("classes", "heads.classification.fc."),
    "segmentation": ("classes", "heads.segmentation.classifier."),
    "auxiliary": ("classes", "heads.auxiliary.classifier."),
}


def classifiers(key: str) -> set[str]:
    """Heads whose rows stand for what the meta lists under `key`."""
    return {head for head, (listed, _) in _CLASSIFIERS.items() if listed == key}


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
    if both_text and source.shared_expert != target.shared_expert:
        theirs, ours = ("shared" if spec.shared_expert else "modality" for spec in (source, target))
        raise UsageError(f"init={origin} has model.experts={theirs}, this run {ours}: set model.experts={theirs}")
    if both_text and source.text_tower != target.text_tower:
        raise UsageError(
            f"init={origin} has model.text_tower={source.text_tower} and its tokenizer, this run {target.text_tower}: "
            f"set model.text_tower={source.text_tower}, start from a run without text, or init=none"
        )
    if both_text and source.vocab_size != target.vocab_size:
        official = source.vocab_size == 30522
        raise UsageError(
            f"init={origin} has a vocabulary of {source.vocab_size}, this run {target.vocab_size}: use its tokenizer"
            + (" (text.tokenizer=bert-base-uncased is that of official VLMo files)" if official else "")
        )
    if both_text and source.text_positions < target.text_positions:
        raise UsageError(
            f"init={origin} has text.positions={source.text_positions}, this run {target.text_positions}: texts can "
            f"become shorter, not longer; set text.positions={source.text_positions}"
        )


@torch.no_grad()
def transfer(
    objective: nn.Module,
    state: State,
    source: EncoderSpec,
    target: EncoderSpec,
    labels: tuple[Meta, Meta] = ({}, {}),
) -> LoadReport:
    """Copy into `objective` every parameter of `state` that has a place there, adapting positions on the way.

    One position table becomes a table per layer before any resizing; image tables follow the new patch grid (geometric
    sequence for relative tables, as BEiT; bicubic for absolute ones), text tables are cut to a shorter length. A head
    is taken where its shapes are the same; where the `labels`, the metas of the weights and of the objective, both list
    its answers or classes, its rows are taken by those.

    Raises UsageError where nothing fits, DataError where a list of labels is not as long as its classifier.
    """
    report = LoadReport()
    own = objective.state_dict()
    state = _adapt_positions(dict(state), source, target, report)
    left = _drop_other_towers(state, source, target) + _drop_other_scales(state, own)
    if target.vocab_size is None:
        _fold_type(state, report)
    else:
        _fit_texts(state, source, target, report)
    _by_labels(state, own, *labels, report)
    for name, value in own.items():
        given = state.pop(name, None)
        if given is None or given.shape != value.shape:
            report.missing.append(name)
            continue
        value.copy_(given)
        if name not in report.resized:
            report.loaded.append(name)
    taken = {*report.loaded, *report.resized}
    report.resized = [name for name in report.resized if name in own]
    report.remapped = {name: theirs for name, theirs in report.remapped.items() if name in taken}
    lost = [name for name in report.missing if f".{IMAGE_TOWER}." in name]
    if lost and source.image_tower == target.image_tower:
        raise UsageError(f"model.image_tower={target.image_tower} cannot follow data.image_size={target.image_size}")
    report.unexpected = sorted([*state, *left])
    if not report.loaded:
        raise UsageError("no weight of init fits this run: is it a run of another kind?")
    return report


def _adapt_positions(state: State, source: EncoderSpec, target: EncoderSpec, report: LoadReport) -> State:
    if source.positions == "per_layer" and target.positions == "shared":
        # of many tables none is the one for all layers: it starts anew, and the report says so
        state = {name: value for name, value in state.items() if not name.startswith("encoder.rel_pos.")}
    if source.positions == "shared" and target.positions == "per_layer":
        for part in ("image", "cross", "text"):
            table = state.pop(f"encoder.rel_pos.0.{part}", None)
            for layer in range(target.depth if table is not None else 0):
                state[f"encoder.rel_pos.{layer}.{part}"] = table.clone()  # type: ignore[union-attr]
                report.remapped[f"encoder.rel_pos.{layer}.{part}"] = (f"encoder.rel_pos.0.{part}",)
    same_tower = target.image_tower == source.image_tower != "own"
    if same_tower and target.image_size is not None and target.image_size != source.image_size:
        for name, value in resized(state, source, target.image_size).items():
            if name not in state or value.shape != state[name].shape:
                report.resized.append(name)
            state[name] = value
    if source.grid and target.grid and source.grid != target.grid:
        for name, value in state.items():
            if name.startswith("encoder.rel_pos.") and name.endswith(".image"):
                state[name] = resize_table(value, source.grid, target.grid)
                report.resized.append(name)
            elif name == "encoder.pos_embed":
                state[name] = resize_embedding(value, source.grid, target.grid)
                report.resized.append(name)
    return state


def _fit_texts(state: State, source: EncoderSpec, target: EncoderSpec, report: LoadReport) -> None:
    """Positions of a shorter longest text; as many token types as the target has."""
    length = target.text_positions
    for name in list(state) if source.text_positions > length else ():
        if name.startswith("encoder.rel_pos.") and name.endswith(".text"):
            state[name] = cut_text_table(state[name], length)
            report.resized.append(name)
        elif name == "encoder.text_embed.position_embeddings.weight":
            state[name] = state[name][:length]
            report.resized.append(name)
    types = state.get("encoder.type_embed.weight")
    if types is not None and len(types) != target.token_types:
        # the type of a second picture begins as that of the first (VLMo)
        rows = [min(row, 1) if row >= len(types) else row for row in range(target.token_types)]
        state["encoder.type_embed.weight"] = types[rows]
        report.resized.append("encoder.type_embed.weight")


def _by_labels(state: State, own: State, theirs: Meta, ours: Meta, report: LoadReport) -> None:
    """Rows of a classifier by what they stand for, where both sides say it."""
    for head, (key, prefix) in _CLASSIFIERS.items():
        for name in (f"{prefix}weight", f"{prefix}bias"):
            if key not in theirs or key not in ours or name not in state or name not in own:
                continue
            rows, found = reorder_rows(state[name], own[name], theirs[key], ours[key], head)
            if not found:
                del state[name]  # rows of other things would be no better than initial ones
                continue
            state[name] = rows
            if theirs[key] != ours[key]:
                report.resized.append(name)
                report.remapped[name] = (f"{found} of {len(rows)} rows of {name} by their {key}",)


def _drop_other_towers(state: State, source: EncoderSpec, target: EncoderSpec) -> list[str]:
    """Remove the embeddings whose place another tower takes in `target`; returns their names."""
    replaced = []
    for modality, part in (("image", "patch_embed"), ("text", "text_embed")):
        if getattr(source, f"{modality}_tower") != getattr(target, f"{modality}_tower"):
            replaced += [name for name in state if name.startswith(f"encoder.{part}.")]
    for name in replaced:
        del state[name]
    return replaced


def _drop_other_scales(state: State, own: State) -> list[str]:
    """Remove the scale of a contrast head that was learned with a bias where there is none now, or without; its name.

    Softmax does not feel a shift of all products, a sigmoid does: what is right for one is far off for the other.
    """
    scales = [name for name in state if name.endswith(".logit_scale")]
    biases = {name: name.removesuffix("scale") + "bias" for name in scales}
    dropped = [name for name, bias in biases.items() if name in own and (bias in state) != (bias in own)]
    for name in dropped:
        del state[name]
    return dropped


def _fold_type(state: State, report: LoadReport) -> None:
    """An image tower has no type embedding: what was learned there goes where it is added in the image pass."""
    types = state.pop("encoder.type_embed.weight", None)
    for name in ("encoder.cls_token", "encoder.patch_embed.proj.bias"):
        if types is not None and name in state:
            state[name] = state[name] + types[1]
            report.remapped[name] = (name, "encoder.type_embed.weight")
