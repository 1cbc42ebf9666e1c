"""The report of a load: what it says, and when it refuses."""

from __future__ import annotations

import pytest

from vlbeit.errors import DataError
from vlbeit.models.report import LoadReport


def report() -> LoadReport:
    return LoadReport(
        loaded=["encoder.cls_token", *(f"encoder.blocks.{i}.norm1.weight" for i in range(3))],
        resized=["encoder.rel_pos.0.image"],
        remapped={
            "encoder.cls_token": ("transformer.cls_token",),
            "encoder.rel_pos.0.image": ("encoder.rel_pos.0.image",),
        },
        missing=["encoder.blocks.0.experts.text.mlp.fc1.weight", "heads.mlm.dense.bias"],
        unexpected=[f"blocks.{i}.attn.relative_position_index" for i in range(12)] + ["decode_head.conv_seg.bias"],
    )


def test_one_line() -> None:
    assert report().line() == (
        "5 tensors taken, 1 resized (rel_pos), 1 remapped (rel_pos), 2 new (text experts, head mlm), "
        "13 not used (relative_position_index, decode_head)"
    )
    assert LoadReport(loaded=["encoder.cls_token"]).line() == "1 tensors taken"


def test_renames_are_told_from_what_was_made_anew() -> None:
    made = {
        "encoder.cls_token": ("cls_token",),  # a name alone
        "encoder.blocks.0.attn.qkv.weight": ("0.query", "0.key", "0.value"),
        "encoder.rel_pos.0.image": ("table",),
        "encoder.rel_pos.1.image": ("table",),
    }
    found = LoadReport(loaded=list(made), remapped=made)
    assert found.line() == "4 tensors taken, 3 remapped (blocks, rel_pos)"
    assert found.lines() == [
        "loaded: 4 tensors",
        "renamed: 1 tensors",
        "remapped: encoder.blocks.0.attn.qkv.weight <- 0.query + 0.key + 0.value",
        "remapped: encoder.rel_pos.*.image <- table (2)",
    ]


def test_all_lines() -> None:
    lines = report().lines()
    assert lines[0] == "loaded: 4 tensors"
    assert lines[1] == "renamed: 1 tensors" and "remapped: encoder.rel_pos.0.image <- encoder.rel_pos.0.image" in lines
    assert "unexpected: blocks.*.attn.relative_position_index (12)" in lines
    assert "missing: heads.mlm.dense.bias" in lines


def test_check() -> None:
    with pytest.raises(DataError) as caught:
        report().check("x.pth")
    line = str(caught.value)
    assert line.startswith("x.pth: 2 of its tensors are missing (encoder.blocks.0.experts.text.mlp.fc1.weight, heads.")
    assert "vlbeit.load(..., allow=['encoder.blocks.0.experts.text.mlp.fc1.weight'])" in line
    assert "--allow" not in line and "no place" not in line  # which allows no missing ones
    report().check("x.pth", allow=["*.experts.text.*", "heads.mlm.*"])
    with pytest.raises(DataError, match=r"1 have no place .*--allow 'optimizer'"):
        LoadReport(unexpected=["optimizer"]).check("x.pth")
    with pytest.raises(DataError, match="13 have no place"):
        report().check("x.pth", expected=["encoder.*", "heads.*"])
    LoadReport(unexpected=["rel_pos_bias.relative_position_index", "backbone.fpn1.0.weight"]).check("x.pth")
