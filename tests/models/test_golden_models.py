"""The encoder and its heads against outputs of the reference implementations, reference weights loaded."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from vlbeit.models.convert import Hints, convert
from vlbeit.models.encoder import MoMEEncoder, join, split
from vlbeit.models.heads import Heads
from vlbeit.models.spec import EncoderSpec

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


class Model(torch.nn.Module):
    def __init__(self, spec: EncoderSpec, heads: dict) -> None:
        super().__init__()
        self.encoder = MoMEEncoder(spec)
        self.heads = Heads(heads)


def golden(folder: str, name: str) -> tuple[dict, dict, dict]:
    stem = GOLDEN / folder / name
    config = json.loads(stem.with_suffix(".json").read_text())
    return config, load_file(f"{stem}.weights.safetensors"), load_file(f"{stem}.io.safetensors")


def build(config: dict, weights: dict, heads: dict, unused: tuple[str, ...] = (), **parts) -> Model:
    size = config.get("img_size", config.get("image_size"))
    spec = EncoderSpec(
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        image_size=(size, size),
        **parts,
    )
    model = Model(spec, heads).eval()
    state = convert(weights, Hints(image_size=(size, size))).state
    left_over = [key for key in state if key.startswith(unused)] if unused else []
    model.load_state_dict({key: value for key, value in state.items() if key not in left_over})
    return model


def build_vlmo(name: str, heads: dict, fused: bool = True, unused: tuple[str, ...] = ()) -> tuple[Model, dict, dict]:
    config, weights, tensors = golden("vlmo", name)
    model = build(
        config,
        weights,
        heads,
        unused,
        experts=("image", "text"),
        fused_layers=config["depth"] - config["vlffn_start"] if fused else 0,
        vocab_size=config["vocab_size"],
        text_positions=config["max_text_len_of_initckpt"],
    )
    return model, config, tensors


@torch.no_grad()
def test_beit_mim() -> None:
    config, weights, tensors = golden("beit", "beit_mim_shared_relpos")
    heads = {"masked_patch": {"kind": "masked_patch", "dim": 48, "dim_out": config["vocab_size"]}}
    model = build(config, weights, heads, positions="shared", mask_token=True)
    out = model.encoder(model.encoder.embed_image(tensors["in.image"], tensors["in.mask"]))
    logits = model.heads["masked_patch"](out.x_BLD[:, 1:])
    torch.testing.assert_close(logits, tensors["out.all_logits"], **TOLERANCE)
    torch.testing.assert_close(logits[tensors["in.mask"]], tensors["out.masked_logits"], **TOLERANCE)


@torch.no_grad()
def test_beit2_patch_aggregation() -> None:
    config, weights, tensors = golden("beit", "beit2_mim_patch_aggregation")
    found = convert(weights, Hints(early_layers=config["early_layers"]))
    model = Model(EncoderSpec.from_dict(found.description["encoder"]), found.description["heads"]).eval()
    model.load_state_dict(found.state)
    mask, head = tensors["in.mask"].bool(), model.heads["masked_patch"]
    own, aggregated = model.heads["aggregation"](model.encoder, model.encoder.embed_image(tensors["in.image"], mask))
    torch.testing.assert_close(head(own[:, 1:])[mask], tensors["out.masked_logits"], **TOLERANCE)
    torch.testing.assert_close(head(aggregated[:, 1:])[mask], tensors["out.masked_logits_aggregated"], **TOLERANCE)


@torch.no_grad()
def test_beit_classifier() -> None:
    config, weights, tensors = golden("beit", "beit_cls_relpos")
    heads = {"classification": {"kind": "classification", "dim": 48, "num_classes": config["num_classes"]}}
    model = build(config, weights, heads, final_norm=False)
    out = model.encoder(model.encoder.embed_image(tensors["in.image"]))
    torch.testing.assert_close(model.heads["classification"](out.x_BLD), tensors["out.logits"], **TOLERANCE)


PRETRAIN_HEADS = {
    "pooler": {"kind": "pooler", "dim": 48},
    "mlm": {"kind": "mlm", "dim": 48, "vocab_size": 120},
    "contrast": {"kind": "contrast", "dim": 48},
    "contrast_fused": {"kind": "contrast", "dim": 48},
    "match": {"kind": "match", "dim": 48},
}


@torch.no_grad()
def test_vlmo_every_pass() -> None:
    model, config, tensors = build_vlmo("vlmo_rel_pretrain", PRETRAIN_HEADS)
    encoder, heads, start = model.encoder, model.heads, config["vlffn_start"]
    keep = tensors["in.text_masks"].bool()
    text = encoder.embed_text(tensors["in.text_ids"], keep)
    image = encoder.embed_image(tensors["in.image"])

    fused_text, fused_image = split(encoder(join(text, image)))
    real = keep[..., None]
    torch.testing.assert_close(fused_text.x_BLD * real, tensors["out.fused.text"] * real, **TOLERANCE)
    torch.testing.assert_close(fused_image.x_BLD, tensors["out.fused.image"], **TOLERANCE)
    pooled = heads["pooler"](fused_text.x_BLD)
    torch.testing.assert_close(pooled, tensors["out.fused.pooled"], **TOLERANCE)
    torch.testing.assert_close(heads["match"](pooled), tensors["out.itm.logits_positive"], **TOLERANCE)

    low_text = encoder(text, stop=start, norm=False)
    low_image = encoder(image, stop=start, norm=False)
    own_text, own_image = encoder(low_text, start=start), encoder(low_image, start=start)
    torch.testing.assert_close(own_text.x_BLD * real, tensors["out.text.features"] * real, **TOLERANCE)
    torch.testing.assert_close(own_image.x_BLD, tensors["out.image.features"], **TOLERANCE)
    contrast = heads["contrast"]
    torch.testing.assert_close(contrast.embed_text(own_text.x_BLD), tensors["out.text.itc"], **TOLERANCE)
    torch.testing.assert_close(contrast.embed_image(own_image.x_BLD), tensors["out.image.itc"], **TOLERANCE)
    shared_text = encoder(low_text, start=start, fused=True)
    shared_image = encoder(low_image, start=start, fused=True)
    contrast = heads["contrast_fused"]
    torch.testing.assert_close(contrast.embed_text(shared_text.x_BLD), tensors["out.text.itc_vl"], **TOLERANCE)
    torch.testing.assert_close(contrast.embed_image(shared_image.x_BLD), tensors["out.image.itc_vl"], **TOLERANCE)

    masked = encoder(join(encoder.embed_text(tensors["in.text_ids_mlm"], keep), image))
    logits = heads["mlm"](split(masked)[0].x_BLD)
    torch.testing.assert_close(logits * real, tensors["out.mlm.logits"] * real, **TOLERANCE)


@torch.no_grad()
def test_vlmo_rows_do_not_depend_on_padding() -> None:
    model, _, tensors = build_vlmo("vlmo_rel_pretrain", PRETRAIN_HEADS)
    encoder = model.encoder
    for row, keep in enumerate(tensors["in.text_masks"].bool()):
        text = encoder.embed_text(tensors["in.text_ids"][row : row + 1, keep])
        both = encoder(join(text, encoder.embed_image(tensors["in.image"][row : row + 1])))
        alone_text, alone_image = split(both)
        torch.testing.assert_close(alone_text.x_BLD[0], tensors["out.fused.text"][row, keep], **TOLERANCE)
        torch.testing.assert_close(alone_image.x_BLD[0], tensors["out.fused.image"][row], **TOLERANCE)


@torch.no_grad()
def test_vlmo_text_stage() -> None:
    heads = {"mlm": {"kind": "mlm", "dim": 48, "vocab_size": 120}}
    model, _, tensors = build_vlmo("vlmo_rel_textmlm", heads, fused=False, unused=("heads.pooler",))
    keep = tensors["in.text_masks"].bool()
    out = model.encoder(model.encoder.embed_text(tensors["in.text_ids_mlm"], keep))
    logits = model.heads["mlm"](out.x_BLD)
    torch.testing.assert_close(logits[keep], tensors["out.mlm.logits"][keep], **TOLERANCE)
    loss = F.cross_entropy(logits.flatten(0, 1), tensors["in.text_labels_mlm"].flatten())
    torch.testing.assert_close(loss, tensors["out.mlm.loss"], **TOLERANCE)


@torch.no_grad()
def test_vlmo_vqa() -> None:
    heads = {"pooler": {"kind": "pooler", "dim": 48}, "answer": {"kind": "vqa", "dim": 48, "num_answers": 11}}
    model, _, tensors = build_vlmo("vlmo_rel_vqa", heads)
    text = model.encoder.embed_text(tensors["in.text_ids"], tensors["in.text_masks"])
    out = model.encoder(join(text, model.encoder.embed_image(tensors["in.image"])))
    logits = model.heads["answer"](model.heads["pooler"](out.x_BLD))
    torch.testing.assert_close(logits, tensors["out.vqa.logits"], **TOLERANCE)
