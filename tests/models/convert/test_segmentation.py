"""Segmentation models of transformers and mmsegmentation: the same logits here and there, in and out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import BeitConfig, BeitForSemanticSegmentation

import vlbeit
from vlbeit.errors import DataError
from vlbeit.models.convert import convert
from vlbeit.models.convert.beside import hints_beside
from vlbeit.models.convert.layout import Converted, Hints
from vlbeit.models.convert.transformers import to_transformers
from vlbeit.models.convert.unilm import to_unilm
from vlbeit.models.pyramid import taps
from vlbeit.tasks.segmentation.inference import Views

State = dict[str, Tensor]
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 96,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
    "num_labels": 5,
    "auxiliary_channels": 12,
    "use_relative_position_bias": True,
    "layer_scale_init_value": 0.1,
}
BASE_LIKE = {"num_hidden_layers": 13, "out_indices": [5, 7, 9, 13]}  # blocks 3, 5, 7, 11 from 0
LARGE_LIKE = {"num_hidden_layers": 25, "out_indices": [9, 13, 17, 25]}  # blocks 7, 11, 15, 23


def made(shaken: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    return shaken(BeitForSemanticSegmentation(BeitConfig(**{**SMALL, "out_indices": [2, 3, 5, 6], **settings})))


def image(size: int = 96) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def logits_of(theirs: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's and the auxiliary head's, of transformers."""
    found: list[Tensor] = []
    hook = theirs.auxiliary_head.register_forward_hook(lambda module, given, out: found.append(out))
    try:
        return theirs(x).logits, found[-1]
    finally:
        hook.remove()


@torch.inference_mode()
def assert_same_logits(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert theirs.std() > 1e-3
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def hub_state(model: Any, folder: Path) -> State:
    """Its tensors as they lie in files of the hub."""
    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def official(state: State) -> State:
    """Tensors of transformers' files as microsoft/unilm has them in its ADE20K checkpoints (mmsegmentation 0.11)."""
    out: State = {}
    for name, value in state.items():
        name = name.replace("_head.classifier.", "_head.conv_seg.")
        if name.startswith("fpn"):
            name = f"backbone.{name}"
        if name.startswith("beit."):
            name = name.removeprefix("beit.").replace("embeddings.cls_token", "cls_token")
            name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
            name = name.replace("encoder.layer.", "blocks.").replace("layernorm_before", "norm1")
            name = name.replace("layernorm_after", "norm2").replace("attention.output.dense", "attn.proj")
            name = name.replace("intermediate.dense", "mlp.fc1").replace(".output.dense", ".mlp.fc2")
            name = name.replace("lambda_", "gamma_").replace("attention.attention.query.bias", "attn.q_bias")
            name = name.replace("attention.attention.value.bias", "attn.v_bias")
            name = name.replace("attention.attention.relative_position_bias.", "attn.")
            name = f"backbone.{name}"
        if match := re.fullmatch(r"(.+)\.attention\.attention\.(query|key|value)\.weight", name):
            three = [state[n] for n in (_qkv(match[1], part) for part in ("query", "key", "value"))]
            out[f"{match[1]}.attn.qkv.weight"] = torch.cat(three)
        else:
            out[name] = value
    tables = [name for name in out if name.endswith("relative_position_bias_table")]
    for name in tables:
        out[name.replace("bias_table", "index")] = torch.zeros(37, 37, dtype=torch.long)
    return out


def _qkv(block: str, part: str) -> str:
    number = block.split(".")[-1]
    return f"beit.encoder.layer.{number}.attention.attention.{part}.weight"


@pytest.mark.parametrize("names", ["of the hub", "inside"])
@pytest.mark.parametrize(
    "settings", [{}, BASE_LIKE, LARGE_LIKE, {"layer_scale_init_value": 0.0, "image_size": 112}], ids=str
)
def test_logits_equal_those_of_transformers(
    settings: dict[str, Any], names: str, tmp_path: Path, shaken: Any, ours: Any
) -> None:
    theirs = made(shaken, **settings)
    theirs.save_pretrained(tmp_path)
    state = theirs.state_dict() if names == "inside" else load_file(tmp_path / "model.safetensors")
    converted = convert(state, hints_beside(tmp_path, Hints()))
    assert not converted.missing and not converted.unexpected and not converted.dropped
    assert set(converted.description["heads"]) == {"necks", "segmentation", "auxiliary"}
    assert converted.description["normalize"] == "imagenet"
    x = image(settings.get("image_size", 96))
    with torch.inference_mode():
        assert_same_logits(ours(converted).segmented(x), logits_of(theirs, x))


def test_in_and_out_again_is_the_same_to_the_bit(tmp_path: Path, shaken: Any) -> None:
    theirs = made(shaken)
    converted = convert(theirs.state_dict(), Hints(taps=(0, 1, 3, 4)))
    names = ["wall", "sky", "tree", "door", "lamp"]
    to_transformers(converted.description, converted.state, tmp_path, classes=names, normalize="imagenet")
    again, info = BeitForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert again.config.out_indices == [2, 3, 5, 6] and list(again.config.id2label.values()) == names
    assert again.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())


def test_preparation_goes_out(tmp_path: Path, shaken: Any) -> None:
    """The whole of a picture that is not square, bilinear, as `task.inference=whole` shows it to the tower."""
    converted = convert(made(shaken).state_dict(), Hints(taps=(0, 1, 3, 4)))
    to_transformers(converted.description, converted.state, tmp_path, normalize="imagenet")
    noise = torch.randint(0, 255, (40, 70, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.numpy())
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")["pixel_values"][0]
    (own,) = Views((96, 96), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(picture)
    assert theirs.shape == own.pixels.shape and (theirs - own.image(theirs)).abs().mean() < 0.02


@pytest.mark.parametrize("positions", ["per_layer", "shared", "absolute"])
def test_our_taps_reach_the_last_block_through_a_block_of_zeros(
    positions: str, tmp_path: Path, shaken: Any, ours: Any
) -> None:
    settings = {
        "use_relative_position_bias": positions == "per_layer",
        "use_shared_relative_position_bias": positions == "shared",
        "use_absolute_position_embeddings": positions == "absolute",
    }
    converted = convert(made(shaken, **settings).state_dict(), Hints(num_heads=4))  # the published taps: 1, 2, 3, 5
    assert "taps" not in converted.description["heads"]["necks"] and "out_indices" in converted.assumed[0]
    to_transformers(converted.description, converted.state, tmp_path)
    written = transformers.AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert written.config.num_hidden_layers == 7 and written.config.out_indices == [3, 4, 5, 7]
    with torch.inference_mode():
        assert_same_logits(logits_of(written, image()), ours(converted).segmented(image()))
    back = vlbeit.load(tmp_path, **({"num_heads": 4} if positions == "absolute" else {}))
    assert back.encoder is not None and back.encoder.spec.depth == 6 and back.heads["necks"].taps is None
    state = {f"encoder.{n}": v for n, v in back.encoder.state_dict().items()}
    assert all(torch.equal(value, converted.state[name]) for name, value in state.items())


@pytest.mark.parametrize("grid", [6, 32, 40])
def test_published_layout_is_read_and_written_back(grid: int, shaken: Any, ours: Any, tmp_path: Path) -> None:
    """The same weights in transformers, under the names of transformers and under those of mmsegmentation."""
    theirs = made(shaken, image_size=16 * grid, **BASE_LIKE)
    hub = hub_state(theirs, tmp_path)
    state = {name: value for name, value in official(hub).items() if ".blocks.12." not in name}
    converted = convert(state)
    assert converted.layout == "UPerNet of mmsegmentation" and not converted.missing
    assert {name.rsplit(".", 1)[1] for name in converted.unexpected} == {"relative_position_index"}
    assert converted.description["encoder"]["image_size"] == (16 * grid, 16 * grid)
    assert converted.description["heads"] == {
        "necks": {"kind": "feature_necks", "dim": 16},
        "segmentation": {"kind": "upernet", "dim": 16, "num_classes": 5, "channels": 16},
        "auxiliary": {"kind": "fcn", "dim": 16, "num_classes": 5, "channels": 12},
    }
    if grid == 6:
        with torch.inference_mode():
            assert_same_logits(ours(converted).segmented(image()), logits_of(theirs, image()))
    written = to_unilm(converted.description, converted.state)
    assert written.keys() == {name for name in state if not name.endswith("index")}
    assert all(torch.equal(value, state[name]) for name, value in written.items())


def test_shapes_of_the_published_base_model() -> None:
    """150 classes, 640 pixels: what the files state (sizes from microsoft/unilm's README: 163M parameters)."""
    settings = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    with torch.device("meta"):
        config = BeitConfig(
            **settings, image_size=640, num_labels=150, use_relative_position_bias=True, out_indices=[3, 5, 7, 11]
        )
        theirs = BeitForSemanticSegmentation(config)
    converted = convert({name: torch.ones(()).expand(value.shape) for name, value in theirs.state_dict().items()})
    assert not converted.missing and not converted.unexpected
    shapes = {name: tuple(value.shape) for name, value in converted.state.items()}
    assert shapes["encoder.rel_pos.11.image"] == (6244, 12)
    assert shapes["heads.segmentation.bottleneck.conv.weight"] == (768, 5 * 768, 3, 3)
    assert shapes["heads.segmentation.fuse.conv.weight"] == (768, 4 * 768, 3, 3)
    assert shapes["heads.auxiliary.conv.conv.weight"] == (256, 768, 3, 3)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    count = sum(value.numel() for name, value in converted.state.items() if not name.endswith(statistics))
    assert round(count / 1e6) == 163


def test_counters_of_batch_norms_may_be_missing(shaken: Any, ours: Any) -> None:
    state = made(shaken).state_dict()
    without = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    converted = convert(without, Hints(taps=(0, 1, 3, 4)))
    assert not converted.missing
    with torch.inference_mode():
        want = ours(convert(state, Hints(taps=(0, 1, 3, 4)))).segmented(image())
        assert_same_logits(ours(converted).segmented(image()), want)


def test_a_statistic_that_is_missing_is_named(shaken: Any, tmp_path: Path) -> None:
    state = official(hub_state(made(shaken), tmp_path))
    del state["decode_head.fpn_convs.1.bn.running_var"]
    assert convert(state).missing == ["heads.segmentation.outputs.1.norm.running_var"]


@pytest.mark.parametrize(
    "settings",
    [{"use_auxiliary_head": False}, {"auxiliary_num_convs": 2}, {"auxiliary_concat_input": True}],
    ids=str,
)
def test_another_auxiliary_head_is_left_out_whole(settings: dict[str, Any], shaken: Any) -> None:
    converted = convert(made(shaken, **settings).state_dict())
    assert set(converted.description["heads"]) == {"necks", "segmentation"} and not converted.missing
    assert all(name.startswith("auxiliary_head.") for name in converted.unexpected)
    assert bool(converted.unexpected) == ("use_auxiliary_head" not in settings)


def test_another_decoder_leaves_the_backbone(shaken: Any, tmp_path: Path) -> None:
    state = {n: v for n, v in official(hub_state(made(shaken), tmp_path)).items() if not n.startswith("decode_head.")}
    state |= {"decode_head.convs.0.conv.weight": torch.zeros(4, 16, 3, 3), "decode_head.conv_seg.bias": torch.zeros(5)}
    converted = convert(state)
    assert set(converted.description["heads"]) == {"necks", "auxiliary"}
    assert {"decode_head.convs.0.conv.weight", "decode_head.conv_seg.bias"} <= set(converted.unexpected)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_few_blocks_are_tapped_twice_through_idle_ones(depth: int, tmp_path: Path, shaken: Any, ours: Any) -> None:
    """Of 3 blocks 0, 0, 1 and 2 are tapped; transformers wants four different numbers."""
    many = convert(made(shaken).state_dict())
    state = {n: v for n, v in many.state.items() if not re.match(rf"encoder\.\w+\.[{depth}-9]\.", n)}
    spec = {**many.description["encoder"], "depth": depth}
    converted = Converted("ours", {**many.description, "encoder": spec}, state)
    to_transformers(converted.description, converted.state, tmp_path)
    written = BeitForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert len(set(written.config.out_indices)) == 4
    with torch.inference_mode():
        assert_same_logits(logits_of(written, image()), ours(converted).segmented(image()))
    back = vlbeit.load(tmp_path)
    assert back.encoder is not None and back.encoder.spec.depth == depth and back.heads["necks"].taps is None
    assert all(torch.equal(value, state[f"encoder.{n}"]) for n, value in back.encoder.state_dict().items())


def test_other_pooling_scales_are_refused(tmp_path: Path, shaken: Any) -> None:
    with pytest.raises(DataError, match="pools to 3 scales"):
        convert(made(shaken, pool_scales=[1, 2, 3]).state_dict())
    made(shaken, pool_scales=[1, 2, 4, 8]).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"pool_scales=\[1, 2, 4, 8\]"):
        vlbeit.load(tmp_path)


def test_taps_that_are_no_blocks(shaken: Any) -> None:
    state = made(shaken).state_dict()
    with pytest.raises(DataError, match=r"blocks \[0, 1, 3, 6\], from 0: four of its 6"):
        convert(state, Hints(taps=(0, 1, 3, 6)))
    embedding = convert(state, Hints(taps=(-1, 1, 3, 5)))
    assert embedding.description["heads"] == {} and "fpn.fpn2.weight" in embedding.unexpected


def test_decoders_that_transformers_has_not_leave_the_tower(tmp_path: Path, shaken: Any) -> None:
    converted = convert(made(shaken).state_dict())
    for change in ({"kind": "setr_pup"}, {"channels": 8}, {"pool_scales": [1, 2, 4, 8]}):
        heads = {**converted.description["heads"]}
        heads["segmentation"] = {**heads["segmentation"], **change}
        to_transformers({**converted.description, "heads": heads}, converted.state, tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["BeitModel"]


def test_published_taps() -> None:
    assert [tap + 2 for tap in taps(12)] == BASE_LIKE["out_indices"]
    assert [tap + 2 for tap in taps(24)] == LARGE_LIKE["out_indices"]
