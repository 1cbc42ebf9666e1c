"""Decoders of segmentation: shapes, initialisation, what each part depends on, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vlbeit.models.encoder import MoMEEncoder, join
from vlbeit.models.heads import Heads
from vlbeit.models.pyramid import taps, to_map
from vlbeit.models.spec import EncoderSpec

_D, _K = 8, 5


def _heads(**which: str) -> Heads:
    torch.manual_seed(0)
    specs = {name: {"kind": kind, "dim": _D} for name, kind in which.items()}
    for spec in specs.values():
        if spec["kind"] != "feature_necks":
            spec["num_classes"] = _K  # type: ignore[assignment]
    return Heads(specs)  # type: ignore[arg-type]


def _maps(height: int = 4, width: int = 6, batch: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, _D, height, width) for _ in range(4)]


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, [3, 5, 7, 11]), (24, [7, 11, 15, 23]), (3, [0, 0, 1, 2]), (1, [0, 0, 0, 0])]
)
def test_taps_are_the_published_blocks_and_exist_at_any_depth(depth: int, blocks: list[int]) -> None:
    assert taps(depth) == blocks


def test_a_map_has_the_patches_in_rows_without_cls_and_text() -> None:
    text = {"experts": ("image", "text"), "vocab_size": 9, "text_positions": 6}
    encoder = MoMEEncoder(EncoderSpec(8, 1, 2, image_size=(32, 48), **text))  # type: ignore[arg-type]
    image = encoder.embed_image(torch.randn(2, 3, 32, 48))
    both = join(encoder.embed_text(torch.ones(2, 4, dtype=torch.long)), image)
    for tokens in (image, both):
        found = to_map(tokens)
        assert found.shape == (2, 8, 2, 3)
        assert torch.equal(found[:, :, 1, 0], image.x_BLD[:, 1 + 3])
    with pytest.raises(ValueError, match="no patches"):
        to_map(encoder.embed_text(torch.ones(1, 4, dtype=torch.long)))


def test_shapes_of_necks_and_decoders() -> None:
    heads = _heads(necks="feature_necks", segmentation="upernet", auxiliary="fcn", pup="setr_pup")
    pyramid = heads["necks"](_maps())
    assert [tuple(level.shape[2:]) for level in pyramid] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert heads["segmentation"](pyramid).shape == (2, _K, 16, 24)
    assert heads["auxiliary"](pyramid).shape == (2, _K, 4, 6)
    assert heads["pup"](_maps()).shape == (2, _K, 64, 96)


def test_an_odd_grid_has_its_last_row_dropped_by_the_pooling_alone() -> None:
    heads = _heads(necks="feature_necks", segmentation="upernet")
    pyramid = heads["necks"](_maps(5, 3))
    assert tuple(pyramid[3].shape[2:]) == (2, 1)
    assert heads["segmentation"](pyramid).shape[2:] == (20, 12)


@pytest.mark.parametrize(("name", "used"), [("upernet", [0, 1, 2, 3]), ("fcn", [2]), ("setr_pup", [3])])
def test_each_decoder_reads_the_maps_that_it_says(name: str, used: list[int]) -> None:
    head = _heads(head=name).eval()["head"]
    maps = [level.requires_grad_() for level in _maps()]
    head(maps).square().sum().backward()
    assert [index for index, level in enumerate(maps) if level.grad is not None and level.grad.any()] == used


def test_every_parameter_gets_a_gradient_and_batch_norm_its_statistics() -> None:
    heads = _heads(necks="feature_necks", segmentation="upernet", auxiliary="fcn", pup="setr_pup")
    pyramid = heads["necks"](_maps())
    loss = heads["segmentation"](pyramid).square().sum() + heads["auxiliary"](pyramid).square().sum()
    (loss + heads["pup"](_maps()).square().sum()).backward()
    without = [n for n, p in heads.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    norms = [module for module in heads.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 1 + (4 + 1 + 3 + 3 + 1) + 1 + 4
    assert all(norm.running_mean is not None and norm.running_mean.any() for norm in norms)


def test_published_initialisation() -> None:
    torch.manual_seed(0)
    heads = Heads({"segmentation": {"kind": "upernet", "dim": 64, "num_classes": 150}})
    decoder = heads["segmentation"]
    weight = decoder.fuse.conv.weight
    assert weight.shape == (64, 4 * 64, 3, 3)
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert decoder.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not decoder.classifier.bias.any()


def test_dropout_takes_whole_channels_and_only_in_training() -> None:
    head = _heads(head="fcn")["head"].eval()
    assert torch.equal(head(_maps()), head(_maps()))
    assert isinstance(head.dropout, nn.Dropout2d)
    assert head.dropout.p == 0.1


def test_parameters_of_base_as_published() -> None:
    """163M for base and 441M for large: what the page of microsoft/unilm states for its ADE20K models."""
    with torch.device("meta"):
        for dim, depth, millions in ((768, 12, 163), (1024, 24, 441)):
            spec = EncoderSpec(dim, depth, dim // 64, image_size=(640, 640), final_norm=False)
            heads = Heads(
                {
                    "necks": {"kind": "feature_necks", "dim": dim},
                    "segmentation": {"kind": "upernet", "dim": dim, "num_classes": 150},
                    "auxiliary": {"kind": "fcn", "dim": dim, "num_classes": 150},
                }
            )
            count = sum(p.numel() for module in (MoMEEncoder(spec), heads) for p in module.parameters())
            assert round(count / 1e6) == millions
