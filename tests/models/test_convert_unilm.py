"""Official BEiT and VLMo layouts: what is read off the tensors, what must be asked for, and the way back."""

from __future__ import annotations

import pytest
import torch

from vlbeit.errors import DataError, UsageError
from vlbeit.models.convert import Hints, convert
from vlbeit.models.convert.tables import cut_joint_table, join_tables
from vlbeit.models.convert.unilm import official_name, our_name, to_unilm

NEVER_USED = ("relative_position_index", "position_ids", "text_embeddings.position_embeddings.weight")

BEITS = {
    "mim": ({"positions": "shared", "mim": 64}, {"positions": "shared", "mask_token": True}, {"masked_patch"}),
    "fine-tuned": ({"classes": 10}, {"positions": "per_layer", "final_norm": False}, {"classification"}),
    "22k": ({"classes": 21841, "dim": 8}, {"embed_dim": 8}, {"classification"}),
    "384": ({"classes": 10, "grid": (24, 24)}, {"image_size": (384, 384)}, {"classification"}),
    "absolute": (
        {"positions": "absolute", "layer_scale": False, "classes": 10},
        {"positions": "absolute", "layer_scale": 0.0, "num_heads": 3},
        {"classification"},
    ),
    "CLS pooling": ({"classes": 10, "pool": "token"}, {"final_norm": True}, {"classification"}),
    "v2 mim": (
        {"positions": "shared", "mim": 64, "extra_layers": 2},
        {"positions": "shared"},
        {"masked_patch", "aggregation"},
    ),
    "not square": ({"grid": (6, 8)}, {"image_size": (96, 128)}, set()),
}


@pytest.mark.parametrize("name", BEITS)
def test_beit_is_read_and_written_back(unilm, name: str) -> None:
    parts, expected, heads = BEITS[name]
    state = unilm.beit(**parts)
    size = (96, 128) if name == "not square" else None
    found = convert(dict(state), Hints(num_heads=3 if name == "absolute" else None, image_size=size))
    spec = found.description["encoder"]
    assert found.layout == "unilm BEiT" and found.missing == []
    assert (spec["depth"], spec["patch_size"], spec["mlp_ratio"], spec["experts"]) == (4, 16, 4.0, ("image",))
    assert {key: spec[key] for key in expected} == expected
    assert set(found.description["heads"]) == heads
    assert all(unused.endswith(NEVER_USED) for unused in found.unexpected)
    assert_same(to_unilm(found.description, found.state), state)


def test_class_counts_and_pooling(unilm) -> None:
    heads = convert(unilm.beit(classes=21841, dim=8)).description["heads"]
    assert heads["classification"] == {"kind": "classification", "dim": 8, "num_classes": 21841}
    heads = convert(unilm.beit(classes=10, pool="token")).description["heads"]
    assert heads["classification"]["pool"] == "token"


VLMOS = {
    "text stage": ({"parts": ("mlm",), "fused": 0}, {"fused_layers": 0, "vocab_size": 30}, {"pooler", "mlm"}),
    "pre-trained": (
        {"parts": ("mlm", "itm", "itc")},
        {"fused_layers": 2, "text_positions": 196, "image_size": (224, 224)},
        {"pooler", "mlm", "match", "contrast", "contrast_fused"},
    ),
    "vqa at 480": ({"parts": ("vqa",), "side": 30}, {"image_size": (480, 480)}, {"pooler", "answer"}),
    "nlvr2 at 384": (
        {"parts": ("nlvr2",), "types": 3, "side": 24},
        {"token_types": 3, "image_size": (384, 384)},
        {"pooler", "pair"},
    ),
    "retrieval": ({"parts": ("irtr",), "side": 24}, {"num_heads": 2}, {"pooler", "contrast"}),
    "large": ({"depth": 24, "dim": 8, "fused": 3}, {"depth": 24, "fused_layers": 3, "num_heads": 2}, {"pooler"}),
    "base_plus": (
        {"absolute": True, "depth": 24, "dim": 544, "fused": 3, "words": 12},
        {"positions": "absolute", "num_heads": 16, "text_positions": 40, "layer_scale": 0.0},
        {"pooler"},
    ),
}


@pytest.mark.parametrize("name", VLMOS)
def test_vlmo_is_read_and_written_back(unilm, name: str) -> None:
    parts, expected, heads = VLMOS[name]
    state = unilm.vlmo(**parts)
    found = convert(dict(state))
    spec = found.description["encoder"]
    assert found.layout == "unilm VLMo" and found.missing == []
    assert {key: spec[key] for key in expected} == expected and spec["experts"] == ("image", "text")
    assert set(found.description["heads"]) == heads
    assert all(unused.endswith(NEVER_USED) for unused in found.unexpected)
    if "absolute" not in parts:
        assert found.sources["encoder.rel_pos.1.cross"] == ("relative_position_bias_table",)
    assert_same(to_unilm(found.description, found.state), state)


def assert_same(written: dict, official: dict) -> None:
    """Every official tensor to the bit, but for what nothing ever reads; and nothing else."""
    assert set(written) <= set(official)
    unused = [name for name in set(official) - set(written) if not name.endswith(NEVER_USED)]
    assert unused == []
    for name, value in written.items():
        assert value.dtype == official[name].dtype and torch.equal(value, official[name]), name


def test_segmentation_backbone(unilm) -> None:
    backbone = unilm.beit(grid=(40, 40), dim=8)
    state = {f"backbone.{name}": value for name, value in backbone.items()}
    state |= {"backbone.fpn1.0.weight": torch.zeros(1), "decode_head.conv_seg.weight": torch.zeros(1)}
    found = convert(state)
    spec = found.description["encoder"]
    assert spec["image_size"] == (640, 640) and not spec["final_norm"] and found.description["normalize"] == "imagenet"
    assert {"backbone.fpn1.0.weight", "decode_head.conv_seg.weight"} <= set(found.unexpected)
    assert found.sources["encoder.cls_token"] == ("backbone.cls_token",)
    assert_same(to_unilm(found.description, found.state), backbone)


def test_prefix_and_half_precision(unilm) -> None:
    state = {f"transformer.{name}": value.half() for name, value in unilm.beit(classes=3).items()}
    found = convert(state)
    assert found.layout == "unilm BEiT" and {value.dtype for value in found.state.values()} == {torch.float16}


def test_published_widths_need_no_hint(unilm) -> None:
    found = convert(unilm.beit(positions="absolute", dim=768, depth=12, layer_scale=False))
    assert found.description["encoder"]["num_heads"] == 12


@pytest.mark.parametrize(
    ("kind", "parts", "hints", "message"),
    [
        ("beit", {"positions": "absolute"}, {}, r"num_heads=12\), or `vlbeit convert FILE DIR --num-heads 12`"),
        ("beit", {"positions": "absolute"}, {"num_heads": 7}, "num_heads=7 does not divide the width 24"),
        ("beit", {}, {"num_heads": 3}, "num_heads=3, but the position tables are of 2"),
        ("beit", {}, {"image_size": (384, 384)}, "732 rows, which do not fit image_size=384"),
        ("beit", {"grid": (6, 8)}, {}, "168 rows, .* no square.* --image-size HEIGHTxWIDTH"),
        ("beit", {"positions": "absolute", "grid": (6, 8)}, {"num_heads": 2}, "48 patches, no square.*HEIGHTxWIDTH"),
        ("beit", {}, {"image_size": (100, 100)}, "not a multiple of the file's patches of 16"),
        ("beit", {"positions": "shared", "mim": 8, "extra_layers": 1}, {"early_layers": 9}, "not one of the 4 blocks"),
        ("vlmo", {}, {"text_positions": 40}, "1126 rows: 40 text distances leave no square grid.*--text-positions"),
        ("vlmo", {}, {"image_size": (480, 480)}, "1126 rows, which do not fit image_size=480"),
        ("vlmo", {}, {"image_size": (224, 224), "text_positions": 40}, "do not fit image_size=224"),
    ],
)
def test_hints_that_are_needed_or_wrong(unilm, kind: str, parts: dict, hints: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        convert(getattr(unilm, kind)(**parts), Hints(**hints))


def test_files_that_do_not_hold_together(unilm) -> None:
    with pytest.raises(DataError, match="not a BEiT, VLMo or image tokenizer"):
        convert({"fc.weight": torch.zeros(2, 2)})
    state = unilm.beit()
    refused = {
        "no positions of either kind": {k: v for k, v in state.items() if "relative" not in k},
        "both absolute positions and": {**state, "pos_embed": torch.zeros(1, 197, 24)},
        "one position table for all layers": {
            **state,
            "rel_pos_bias.relative_position_bias_table": torch.zeros(732, 2),
        },
        "has blocks 0, 1, 3: not a whole": {k: v for k, v in state.items() if "blocks.2." not in k},
        "rel_pos.0.image has shape .*2 dimensions": {
            **state,
            "blocks.0.attn.relative_position_bias_table": torch.zeros(732),
        },
        r"blocks\.1\.mlp\.fc1\.weight has shape \[5, 24\]": {**state, "blocks.1.mlp.fc1.weight": torch.zeros(5, 24)},
        "not square patches of 3 channels": {**state, "patch_embed.proj.weight": torch.zeros(24, 1, 16, 16)},
        "4 dimensions are wanted": {**state, "patch_embed.proj.weight": torch.zeros(24)},
    }
    for message, wrong in refused.items():
        with pytest.raises(DataError, match=message):
            convert(wrong)
    joint = unilm.vlmo()
    joint["relative_position_bias_table"] = torch.zeros(1126, 7)
    with pytest.raises(DataError, match="no columns for the heads of 4 blocks"):
        convert(joint)
    middle = {k: v for k, v in unilm.vlmo().items() if "blocks.3.mlp_vl" not in k and "blocks.3.norm2_vl" not in k}
    with pytest.raises(DataError, match="only the top ones can"):
        convert(middle)


def test_what_is_missing_is_named(unilm) -> None:
    state = unilm.beit(classes=4)
    del state["blocks.2.gamma_1"], state["blocks.1.attn.relative_position_bias_table"]
    assert convert(state).missing == ["encoder.rel_pos.1.image", "encoder.blocks.2.gamma_1"]


def test_what_unilm_cannot_hold(unilm) -> None:
    found = convert(unilm.beit(mim=8, positions="shared"))
    state = {**found.state, "target.dvae.x": torch.zeros(1)}
    assert set(to_unilm(found.description, state)) == set(to_unilm(found.description, found.state))
    for change, message in (
        ({"image_size": None, "experts": ("text",), "vocab_size": 9}, "text alone has no unilm layout"),
        ({"image_tower": "timm:resnet50", "mask_token": False}, "model.image_tower=timm:resnet50 has no unilm layout"),
    ):
        with pytest.raises(UsageError, match=message):
            to_unilm({"encoder": found.description["encoder"] | change}, state)
    with pytest.raises(UsageError, match="a tokenizer has no encoder"):
        to_unilm({"dvae": {}}, {})


def test_names_there_and_back() -> None:
    assert our_name("transformer.blocks.3.norm2_vl.bias") == "encoder.blocks.3.experts.fused.norm.bias"
    assert official_name("encoder.blocks.3.experts.fused.norm.bias", vlmo=True) == "transformer.blocks.3.norm2_vl.bias"
    assert official_name("encoder.blocks.3.experts.text.mlp.fc1.bias", vlmo=False) is None
    assert our_name("blocks.0.attn.relative_position_index") is None and our_name("optimizer") is None


def test_joint_table_cut_and_joined() -> None:
    table = torch.randn(94, 12)
    parts = cut_joint_table(table, 4, (4, 4))
    assert parts["encoder.rel_pos.3.image"].shape == (52, 3)
    assert parts["encoder.rel_pos.3.text"].shape == (40, 3)
    assert torch.equal(join_tables(parts, 4), table)
    with pytest.raises(DataError, match="does not fit"):
        cut_joint_table(table, 4, (7, 7))
