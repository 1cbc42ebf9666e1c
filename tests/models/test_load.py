"""Checkpoints of others through the public call: outputs of the reference, what is built, what is refused."""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

import vlbeit
from vlbeit.cli import main
from vlbeit.errors import DataError, UsageError
from vlbeit.models import checkpoint, foreign
from vlbeit.models.checkpoint import read_checkpoint, read_head
from vlbeit.models.encoder import split
from vlbeit.models.foreign import is_foreign
from vlbeit.models.image_tower import ImageTower
from vlbeit.models.transfer import transfer

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def golden(name: str) -> tuple[Path, dict]:
    return GOLDEN / f"{name}.weights.safetensors", load_file(GOLDEN / f"{name}.io.safetensors")


@torch.no_grad()
def test_golden_beit_mim() -> None:
    path, tensors = golden("beit/beit_mim_shared_relpos")
    model = vlbeit.load(path)
    tokens = model.encoder(model.encoder.embed_image(tensors["in.image"], tensors["in.mask"].bool()))
    torch.testing.assert_close(model.heads["masked_patch"](tokens.x_BLD[:, 1:]), tensors["out.all_logits"], **TOLERANCE)
    unmasked = model.encoder(model.encoder.embed_image(tensors["in.image"]))
    assert torch.equal(model.encode(image=tensors["in.image"]).x_BLD, unmasked.x_BLD)
    assert model.config == model.meta == {} and model.tokenizer is None and not model.encoder.training


@torch.no_grad()
def test_golden_beit_classifier() -> None:
    path, tensors = golden("beit/beit_cls_relpos")
    model, image = vlbeit.load(path), tensors["in.image"]
    raw = model.encoder(model.encoder.embed_image(image)).x_BLD
    torch.testing.assert_close(model.heads["classification"](raw), tensors["out.logits"], **TOLERANCE)
    torch.testing.assert_close(ImageTower.from_run(path)(image), tensors["out.logits"], **TOLERANCE)
    # the classifier's own norm on every token, as there is no other
    weights = load_file(path)
    expected = F.layer_norm(raw, (48,), weights["fc_norm.weight"], weights["fc_norm.bias"], 1e-6)
    torch.testing.assert_close(model.encode(image=image).x_BLD, expected)


@torch.no_grad()
def test_golden_beit2_patch_aggregation() -> None:
    path, tensors = golden("beit/beit2_mim_patch_aggregation")
    model, mask = vlbeit.load(path, early_layers=3), tensors["in.mask"].bool()
    own, aggregated = model.heads["aggregation"](model.encoder, model.encoder.embed_image(tensors["in.image"], mask))
    logits = [model.heads["masked_patch"](x_BLD[:, 1:])[mask] for x_BLD in (own, aggregated)]
    torch.testing.assert_close(logits[0], tensors["out.masked_logits"], **TOLERANCE)
    torch.testing.assert_close(logits[1], tensors["out.masked_logits_aggregated"], **TOLERANCE)
    assert model.normalize == "imagenet"


@torch.no_grad()
def test_timm_from_224_to_384() -> None:
    """timm has the names of unilm: the same logits before and after the position tables grow."""
    torch.manual_seed(0)
    theirs = timm.create_model("beit_base_patch16_224", embed_dim=48, depth=3, num_heads=3, num_classes=5).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    model = vlbeit.load(theirs.state_dict())
    tower = ImageTower(model.encoder, 5)
    tower.fc_norm, tower.head = model.heads["classification"].fc_norm, model.heads["classification"].fc
    for size in (224, 384):
        if size == 384:
            theirs.set_input_size(img_size=384)
            tower.set_input_size(384)
        image = torch.randn(1, 3, size, size)
        torch.testing.assert_close(tower(image), theirs(image), **TOLERANCE)


@torch.no_grad()
def test_golden_vlmo_passes() -> None:
    path, tensors = golden("vlmo/vlmo_rel_pretrain")
    model = vlbeit.load(path, image_size=64)
    ids, keep, image = tensors["in.text_ids"], tensors["in.text_masks"].bool(), tensors["in.image"]
    real = keep[..., None]
    text, picture = split(model.encode(image=image, text_ids=ids, text_keep=keep))
    torch.testing.assert_close(text.x_BLD * real, tensors["out.fused.text"] * real, **TOLERANCE)
    torch.testing.assert_close(picture.x_BLD, tensors["out.fused.image"], **TOLERANCE)
    alone = model.encode(text_ids=ids, text_keep=keep).x_BLD
    torch.testing.assert_close(alone * real, tensors["out.text.features"] * real, **TOLERANCE)
    seen = model.encode(image=image).x_BLD
    torch.testing.assert_close(seen, tensors["out.image.features"], **TOLERANCE)
    heads = model.heads
    torch.testing.assert_close(heads["contrast"].embed_text(alone), tensors["out.text.itc"], **TOLERANCE)
    torch.testing.assert_close(heads["contrast"].embed_image(seen), tensors["out.image.itc"], **TOLERANCE)
    matched = heads["match"](heads["pooler"](text.x_BLD))
    torch.testing.assert_close(matched, tensors["out.itm.logits_positive"], **TOLERANCE)
    masked = split(model.encode(image=image, text_ids=tensors["in.text_ids_mlm"], text_keep=keep))[0].x_BLD
    torch.testing.assert_close(heads["mlm"](masked) * real, tensors["out.mlm.logits"] * real, **TOLERANCE)


@torch.no_grad()
def test_golden_vlmo_text_stage_and_vqa() -> None:
    path, tensors = golden("vlmo/vlmo_rel_textmlm")
    model, keep = vlbeit.load(path, text_positions=20), tensors["in.text_masks"].bool()
    logits = model.heads["mlm"](model.encode(text_ids=tensors["in.text_ids_mlm"], text_keep=keep).x_BLD)
    torch.testing.assert_close(logits[keep], tensors["out.mlm.logits"][keep], **TOLERANCE)
    path, tensors = golden("vlmo/vlmo_rel_vqa")
    model = vlbeit.load(load_file(path), image_size=(64, 64))
    tokens = model.encode(
        image=tensors["in.image"], text_ids=tensors["in.text_ids"], text_keep=tensors["in.text_masks"]
    )
    answers = model.heads["answer"](model.heads["pooler"](tokens.x_BLD))
    torch.testing.assert_close(answers, tensors["out.vqa.logits"], **TOLERANCE)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("side", [14, 30])
def test_vlmo_passes_at_224_and_480(unilm, side: int, absolute: bool) -> None:
    model = vlbeit.load(unilm.vlmo(side=side, absolute=absolute, parts=("vqa",)), num_heads=2)
    image, ids = torch.randn(2, 3, 16 * side, 16 * side), torch.randint(0, 30, (2, 40))
    keep = torch.arange(40)[None] < torch.tensor([[40], [9]])
    assert model.encode(image=image).x_BLD.shape == (2, 1 + side * side, 24)
    assert model.encode(text_ids=ids, text_keep=keep).x_BLD.shape == (2, 40, 24)
    both = model.encode(image=image, text_ids=ids, text_keep=keep)
    assert both.x_BLD.shape == (2, 40 + 1 + side * side, 24)
    unpadded = model.encode(image=image[1:], text_ids=ids[1:, :9])
    torch.testing.assert_close(both.x_BLD[1, :9], unpadded.x_BLD[0, :9], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.x_BLD[1, 40:], unpadded.x_BLD[0, 9:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_vlmo_goes_from_224_to_480(unilm) -> None:
    """Words are read as before; the table of the pictures grows, the rows between the two stay."""
    small, large = (vlbeit.load(unilm.vlmo(side=side)) for side in (14, 30))
    weights = {f"encoder.{name}": value for name, value in small.encoder.state_dict().items()}
    target = torch.nn.ModuleDict({"encoder": large.encoder})
    report = transfer(target, weights, small.encoder.spec, large.encoder.spec)
    assert report.missing == report.unexpected == []
    assert report.resized == [f"encoder.rel_pos.{layer}.image" for layer in range(4)]
    ids = torch.randint(0, 30, (2, 12))
    assert torch.equal(small.encode(text_ids=ids).x_BLD, large.encode(text_ids=ids).x_BLD)
    assert torch.equal(small.encoder.rel_pos[2].cross, large.encoder.rel_pos[2].cross)
    assert torch.equal(small.encoder.rel_pos[2].image[-3:], large.encoder.rel_pos[2].image[-3:])


@torch.no_grad()
def test_image_tower_of_official_files(unilm, tmp_path) -> None:
    """The image pass of a VLMo, and the taps of a segmentation backbone, as the whole model has them."""
    image = torch.randn(2, 3, 224, 224)
    save_file(unilm.vlmo(types=3, parts=("nlvr2",)), tmp_path / "vlmo.safetensors")
    model, tower = vlbeit.load(tmp_path / "vlmo.safetensors"), ImageTower.from_run(tmp_path / "vlmo.safetensors")
    assert set(tower.encoder.blocks[3].experts) == {"image"} and tower.num_classes == 0
    torch.testing.assert_close(tower.forward_features(image), model.encode(image=image).x_BLD, **TOLERANCE)

    backbone = {f"backbone.{name}": value for name, value in unilm.beit().items()}
    save_file(backbone, tmp_path / "upernet.safetensors")
    model, tower = vlbeit.load(tmp_path / "upernet.safetensors"), ImageTower.from_run(tmp_path / "upernet.safetensors")
    assert tower.mean == (0.485, 0.456, 0.406)
    taps = model.encoder.forward_intermediates(model.encoder.embed_image(image), [1, 3])
    maps = tower.forward_intermediates(image, [1, 3], output_fmt="NLC", intermediates_only=True)
    for tap, found in zip(taps, maps, strict=True):
        torch.testing.assert_close(found, tap.x_BLD[:, 1:])


@torch.no_grad()
def test_segmentation_backbone_gets_a_plain_norm(unilm) -> None:
    state = {f"backbone.{name}": value for name, value in unilm.beit(grid=(4, 4)).items()}
    model = vlbeit.load(state | {"decode_head.conv_seg.bias": torch.zeros(150)})
    tokens = model.encode(image=torch.randn(2, 3, 64, 64)).x_BLD
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(2, 17), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens.var(-1, unbiased=False), torch.ones(2, 17), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_cls_pooling(unilm, tmp_path) -> None:
    save_file(unilm.beit(classes=3, pool="token", grid=(4, 4)), tmp_path / "beit.safetensors")
    model, image = vlbeit.load(tmp_path / "beit.safetensors"), torch.randn(2, 3, 64, 64)
    logits = model.heads["classification"](model.encode(image=image).x_BLD)
    tower = ImageTower.from_run(tmp_path / "beit.safetensors")
    assert tower.global_pool == "token"
    torch.testing.assert_close(tower(image), logits)


def test_report_is_said_and_kept(unilm, capsys: pytest.CaptureFixture[str]) -> None:
    model = vlbeit.load(unilm.beit(classes=3))
    assert capsys.readouterr().err.startswith("state dict: 71 tensors taken, 4 not used (")
    assert model.report.unexpected == [f"blocks.{i}.attn.relative_position_index" for i in range(4)]
    assert model.report.remapped["heads.classification.fc.bias"] == ("head.bias",)
    vlbeit.load(unilm.vlmo())
    assert "12 remapped (rel_pos)" in capsys.readouterr().err  # 3 parts of a joint table for each of 4 blocks


def test_missing_and_unexpected_names_are_refused_unless_allowed(unilm) -> None:
    state = unilm.beit(classes=3)
    with pytest.raises(DataError, match=r"state dict \(unilm BEiT\): 1 have no place \(extra\.weight\)"):
        vlbeit.load({**state, "extra.weight": torch.zeros(1)})
    vlbeit.load({**state, "extra.weight": torch.zeros(1)}, allow=["extra.*"])
    del state["blocks.1.gamma_1"]
    with pytest.raises(DataError, match=r"1 of its tensors are missing \(encoder\.blocks\.1\.gamma_1\); to begin"):
        vlbeit.load(state)
    model = vlbeit.load(state, allow=["encoder.blocks.1.gamma_1"])
    assert model.report.missing == ["encoder.blocks.1.gamma_1"]


def test_the_weights_file_of_ours_is_told_from_others(unilm, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    vlbeit.load(unilm.beit(classes=3)).save_pretrained(tmp_path / "ours")
    file = tmp_path / "ours" / "model.safetensors"
    for source in (file, str(file)):
        with pytest.raises(UsageError, match=rf"is a part of the checkpoint {tmp_path}/ours: name the folder"):
            vlbeit.load(source)
    assert main(["convert", str(file), str(tmp_path / "out")]) == 2
    assert "name the folder" in capsys.readouterr().err
    save_file(unilm.beit(classes=3), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")  # not ours
    assert vlbeit.load(tmp_path / "model.safetensors").encoder is not None


def test_wrapped_state_dicts(unilm) -> None:
    state = unilm.beit(classes=3)
    wrapped = {"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 3}
    assert torch.equal(vlbeit.load(wrapped).encoder.cls_token, state["cls_token"])
    with pytest.raises(DataError, match="no tensors in it"):
        vlbeit.load({"epoch": 3})
    compiled = {f"_orig_mod.{name}": value for name, value in state.items()}
    for value in (compiled, {"module": {"model": state}}, {"state_dict_ema": state}, {"model": state, "ema": compiled}):
        assert torch.equal(vlbeit.load(value).encoder.cls_token, state["cls_token"])
    half = vlbeit.load({name: value.half() if value.is_floating_point() else value for name, value in state.items()})
    assert half.encoder.cls_token.dtype == torch.float32


def test_state_dicts_are_checked_as_files_are(unilm) -> None:
    state = unilm.beit(classes=3)
    bad = {**state, "norm_\n": torch.full((2,), float("nan"))}
    with pytest.raises(DataError, match=r"^state dict: norm_\? holds NaN or infinite numbers"):
        vlbeit.load(bad)
    bad = {**state, "head.bias": torch.full((3,), float("inf"))}
    assert vlbeit.load(bad, allow=["head.*"]).heads["classification"].fc.bias.isinf().all()
    with pytest.raises(DataError, match=r"state dict: head\.bias is sparse, quantised, spread over devices or without"):
        vlbeit.load({**state, "head.bias": torch.zeros(3, device="meta")})
    with pytest.raises(DataError, match=r"state dict: several sets of weights in it \(a, b\)"):
        vlbeit.load({"a": state, "b": dict(state)})


def test_a_file_is_read_once_for_its_head_and_its_weights(unilm, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "beit.pth"
    torch.save({"model": unilm.beit(classes=3)}, path)
    reads = []
    reader = foreign.read_weights
    monkeypatch.setattr(foreign, "read_weights", lambda *a, **k: reads.append(a) or reader(*a, **k))
    head = read_head(path)
    assert head["config"] == {} and head["description"]["heads"]["classification"]["num_classes"] == 3
    read_head(path)
    found = read_checkpoint(path)
    assert len(reads) == 1 and found.config == {} and found.encoder_spec.depth == 4
    torch.save({"model": unilm.beit(classes=5)}, path)  # another file under the same name
    os.utime(path, ns=(1, 1))
    assert read_head(path)["description"]["heads"]["classification"]["num_classes"] == 5


def test_weights_are_never_there_twice(unilm, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reader gave is gone, tensor by tensor, when the copies go into the encoder, and the head after it."""
    torch.save({"model": unilm.beit(classes=3)}, tmp_path / "beit.pth")
    given: list[weakref.ref] = []
    reader, take = checkpoint.read_foreign, torch.nn.Module.load_state_dict

    def read(*args) -> foreign.Foreign:
        found = reader(*args)
        given.extend(map(weakref.ref, found.state.values()))
        return found

    left = []
    monkeypatch.setattr(checkpoint, "read_foreign", read)
    monkeypatch.setattr(
        torch.nn.Module,
        "load_state_dict",
        lambda *args, **how: left.append(sum(tensor() is not None for tensor in given)) or take(*args, **how),
    )
    model = vlbeit.load(tmp_path / "beit.pth")
    of_the_head = len(model.heads.state_dict())
    assert left == [of_the_head, 0] and of_the_head < len(given)
    assert {name.rpartition(".")[2] for name in model.report.unexpected} == {"relative_position_index"}


def test_hints_are_for_files_of_others(tmp_path, unilm) -> None:
    with pytest.raises(DataError, match="no such run or checkpoint"):
        vlbeit.load(tmp_path / "none.pth", num_heads=3)
    save_file(unilm.beit(positions="absolute"), tmp_path / "a.safetensors")
    with pytest.raises(
        UsageError, match=r"a\.safetensors: absolute positions do not tell the number of attention heads"
    ):
        vlbeit.load(tmp_path / "a.safetensors")
    assert vlbeit.load(tmp_path / "a.safetensors", num_heads=3).encoder.spec.num_heads == 3


def test_folders_of_others(tmp_path, unilm) -> None:
    assert not is_foreign(tmp_path)
    save_file(unilm.beit(classes=3), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "beit"}))
    assert is_foreign(tmp_path)
    assert vlbeit.load(tmp_path).heads["classification"].fc.out_features == 3
    (tmp_path / "config.json").write_text("{")  # ours, and damaged: its own error names it
    with pytest.raises(DataError, match=r"config\.json: cannot read the checkpoint"):
        vlbeit.load(tmp_path)


def test_pooling_that_only_the_config_of_timm_tells(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    small = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
    theirs = timm.create_model("beit_base_patch16_224", **small, global_pool="token").eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ImageTower.from_run(tmp_path)(image), theirs(image), **TOLERANCE)
    assert caplog.messages == [
        f"{tmp_path}: no fc_norm, so the classifier is taken as one on the CLS token (global_pool=token); where its "
        "timm model was made with global_pool=avg and use_fc_norm=False, its logits are others, and vlbeit has no such "
        "classifier"
    ]
    caplog.clear()

    def loads(arguments: dict) -> None:
        config = {"architecture": "beit_base_patch16_224", "num_classes": 3, "model_args": arguments}
        (tmp_path / "config.json").write_text(
            json.dumps({**config, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
        )
        vlbeit.load(tmp_path)

    loads({"global_pool": "token"})
    assert not caplog.messages
    for arguments in ({"global_pool": "avg", "use_fc_norm": False}, {"global_pool": "token", "use_fc_norm": True}):
        with pytest.raises(DataError, match=r"config\.json: use_fc_norm=.* with global_pool="):
            loads(arguments)


def test_norms_of_another_epsilon_are_refused(tmp_path, unilm) -> None:
    save_file(unilm.beit(classes=3), tmp_path / "model.safetensors")
    for epsilon in (1e-6, 1e-12):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "beit", "layer_norm_eps": epsilon}))
        vlbeit.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "beit", "layer_norm_eps": 1e-5}))
    with pytest.raises(
        DataError, match=r"config\.json: layer_norm_eps=1e-05, and the norms of vlbeit have 1e-06 alone"
    ):
        vlbeit.load(tmp_path)


def test_transform(unilm, tmp_path) -> None:
    """The middle of a picture for a classifier, all of it for VLMo; from a picture, a path or bytes."""
    picture = Image.new("RGB", (200, 100), "white")
    picture.paste("red", (0, 0, 40, 100))
    picture.save(tmp_path / "x.png")
    classifier, vlmo = vlbeit.load(unilm.beit(grid=(4, 4))), vlbeit.load(unilm.vlmo(side=14))
    cropped = classifier.transform(picture)
    assert cropped.shape == (3, 64, 64) and cropped.min() == cropped.max() == 1.0
    whole = vlmo.transform(picture)
    assert whole.shape == (3, 224, 224) and whole[1, 100, 10] == -1.0 and whole[1, 100, 200] == 1.0
    for value in (tmp_path / "x.png", str(tmp_path / "x.png"), (tmp_path / "x.png").read_bytes()):
        assert torch.equal(vlmo.transform(value), whole)
    imagenet = vlbeit.load(unilm.beit(grid=(4, 4)), normalize="imagenet").transform(picture)
    assert imagenet[0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229)
