"""The encoder: sizes, routing, positions, agreement with timm."""

from __future__ import annotations

import pytest
import timm
import torch

from vlbeit.config import ModelConfig
from vlbeit.errors import UsageError
from vlbeit.models.convert import convert
from vlbeit.models.encoder import MoMEEncoder, join, split
from vlbeit.models.heads import ClassificationHead, Heads, MaskedPatchHead
from vlbeit.models.presets import PRESETS
from vlbeit.models.spec import EncoderSpec
from vlbeit.nn.block import route
from vlbeit.types import Span

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8, "image_size": (32, 32)}
JOINT = {**SMALL, "experts": ("image", "text"), "fused_layers": 1, "vocab_size": 50, "text_positions": 12}


def build(seed: int = 0, **parts) -> MoMEEncoder:
    """An encoder whose position tables, layer scales and types are not at their initial values."""
    torch.manual_seed(seed)
    encoder = MoMEEncoder(EncoderSpec(**{**SMALL, **parts}))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return encoder.eval()


def count(*modules: torch.nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def meta_encoder(preset: ModelConfig, **parts) -> MoMEEncoder:
    names = ("embed_dim", "depth", "num_heads", "patch_size", "mlp_ratio", "layer_scale")
    with torch.device("meta"):
        return MoMEEncoder(EncoderSpec(**{name: getattr(preset, name) for name in names}, **parts))


def test_published_parameter_counts() -> None:
    base = PRESETS["base"]
    mim = meta_encoder(base, positions="shared", mask_token=True)
    classifier = meta_encoder(base, final_norm=False)
    with torch.device("meta"):
        assert count(mim, MaskedPatchHead(768, 8192)) == 91_965_776
        assert count(classifier, ClassificationHead(768, 1000)) == 86_530_984


@pytest.mark.parametrize(("name", "millions"), [("base", 175.4), ("base_plus", 166.6), ("large", 561.5)])
def test_published_vlmo_sizes(name: str, millions: float) -> None:
    preset = PRESETS[name]
    encoder = meta_encoder(
        preset,
        experts=("image", "text"),
        fused_layers=preset.fused_layers,
        vocab_size=30522,
        positions="absolute" if preset.positions == "absolute" else "per_layer",
        text_positions=40 if preset.positions == "absolute" else 196,
    )
    assert count(encoder) / 1e6 == pytest.approx(millions, abs=0.06)


def test_joint_table_of_vlmo_base() -> None:
    bias = meta_encoder(PRESETS["base"], experts=("image", "text"), vocab_size=10).rel_pos[0]
    assert [tuple(part.shape) for part in (bias.image, bias.cross, bias.text)] == [(732, 12), (2, 12), (392, 12)]


def test_classifier_agrees_with_timm() -> None:
    torch.manual_seed(0)
    reference = timm.create_model("beit_base_patch16_224", img_size=64, num_classes=10).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    encoder = MoMEEncoder(EncoderSpec(768, 12, 12, image_size=(64, 64), final_norm=False)).eval()
    heads = Heads({"classification": {"kind": "classification", "dim": 768, "num_classes": 10}})
    state = convert(reference.state_dict()).state
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})
    heads.load_state_dict({k.removeprefix("heads."): v for k, v in state.items() if k.startswith("heads.")})
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        ours = heads["classification"](encoder(encoder.embed_image(image)).x_BLD)
        torch.testing.assert_close(ours, reference(image), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_image_pass_does_not_change_when_text_and_fused_experts_are_added() -> None:
    alone = build()
    joint = build(seed=1, **{k: v for k, v in JOINT.items() if k not in SMALL})
    joint.type_embed.weight.zero_()
    joint.load_state_dict(alone.state_dict(), strict=False)
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(alone(alone.embed_image(image)).x_BLD, joint(joint.embed_image(image)).x_BLD)


@torch.no_grad()
def test_rows_without_padding_give_the_same() -> None:
    encoder = build(**{k: v for k, v in JOINT.items() if k not in SMALL})
    ids, image = torch.randint(0, 50, (2, 9)), torch.randn(2, 3, 32, 32)
    keep = torch.arange(9) < torch.tensor([[9], [5]])
    both = split(encoder(join(encoder.embed_text(ids, keep), encoder.embed_image(image))))
    alone = split(encoder(join(encoder.embed_text(ids[1:, :5]), encoder.embed_image(image[1:]))))
    torch.testing.assert_close(both[0].x_BLD[1, :5], alone[0].x_BLD[0])
    torch.testing.assert_close(both[1].x_BLD[1], alone[1].x_BLD[0])


@pytest.mark.parametrize("positions", ["per_layer", "shared", "absolute"])
@torch.no_grad()
def test_non_square_pictures(positions: str) -> None:
    encoder = build(image_size=(16, 40), positions=positions)
    tokens = encoder(encoder.embed_image(torch.randn(2, 3, 16, 40)))
    assert tokens.x_BLD.shape == (2, 1 + 2 * 5, 32)
    assert tokens.spans == (Span("image", 0, 11, (2, 5), 1),)
    with pytest.raises(ValueError, match=r"positions are for \(2, 5\)"):
        encoder.embed_image(torch.randn(2, 3, 40, 16))


@torch.no_grad()
def test_non_square_positions_tell_rows_from_columns() -> None:
    """The bias of two patches hangs on their offset in rows and in columns, not on their distance in the sequence."""
    bias = build(image_size=(16, 40)).rel_pos[0]((Span("image", 0, 11, (2, 5), 1),))
    below, right = bias[:, 1 + 5, 1], bias[:, 2, 1]  # one row down, one column right of patch 0
    torch.testing.assert_close(bias[:, 1 + 5 + 3, 1 + 3], below)
    torch.testing.assert_close(bias[:, 1 + 5 + 3, 1 + 5 + 2], right)
    assert not torch.allclose(below, right)
    assert not torch.allclose(bias[:, 6, 5], right), "patch 5 begins the second row"


@torch.no_grad()
def test_fewer_patches_have_the_bias_of_the_same_offsets() -> None:
    """A picture of 2x3 patches stands like the corner of one of 4x4: same patches, same bias, whatever the layer."""
    encoder = build(image_size=(32, 32))
    corner = [0, *(1 + row * 4 + column for row in range(2) for column in range(3))]
    for table in encoder.rel_pos:
        small = table((Span("image", 0, 7, (2, 3), 1),))
        assert torch.equal(small, table((Span("image", 0, 17, (4, 4), 1),))[:, corner][:, :, corner])
    assert encoder(encoder.embed_image(torch.randn(2, 3, 16, 24))).x_BLD.shape == (2, 7, 32)
    for larger in ((40, 16), (16, 40)):
        with pytest.raises(ValueError, match=r"positions are for \(4, 4\)"):
            encoder.embed_image(torch.randn(1, 3, *larger))


@torch.no_grad()
def test_fewer_patches_have_interpolated_absolute_positions() -> None:
    encoder = build(image_size=(32, 32), positions="absolute")
    encoder.patch_embed.proj.weight.zero_(), encoder.patch_embed.proj.bias.zero_(), encoder.cls_token.zero_()
    encoder.pos_embed.copy_(torch.arange(17.0)[None, :, None].expand(1, 17, 32))  # patch 4 r + c: 1 + 4 r + c
    small = encoder.embed_image(torch.randn(1, 3, 16, 32)).x_BLD[0, :, 0]
    assert small[0] == 0 and small.shape == (9,)
    rows = small[1:].reshape(2, 4)
    torch.testing.assert_close(rows[1] - rows[0], torch.full((4,), rows[1, 0] - rows[0, 0]), rtol=1e-4, atol=1e-4)
    assert rows[0].mean() + rows[1].mean() == pytest.approx(17, abs=1e-3)  # the middle stays in the middle
    torch.testing.assert_close(rows[0].diff(), torch.ones(3), rtol=1e-4, atol=1e-4)  # columns are as they were


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match=r"20x32 is not a multiple of patch_size 8: try 16 or 24"):
        EncoderSpec(**{**SMALL, "image_size": (20, 32)})
    with pytest.raises(ValueError, match="30x32 is not a multiple"):
        build().patch_embed(torch.randn(1, 3, 30, 32))
    with pytest.raises(ValueError, match="no mask token"):
        build().embed_image(torch.randn(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="no text part"):
        build().embed_text(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="no position table for 'audio'"):
        build().rel_pos[0]((Span("audio", 0, 4),))
    with pytest.raises(ValueError, match="longer than the position table"):
        encoder = build(**{k: v for k, v in JOINT.items() if k not in SMALL})
        encoder(encoder.embed_text(torch.zeros(1, 13, dtype=torch.long)))


@torch.no_grad()
def test_mask_token_takes_the_place_of_a_patch() -> None:
    encoder = build(mask_token=True)
    image, mask = torch.randn(2, 3, 32, 32), torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 3] = True
    changed = image.clone()
    changed[0, :, :8, 24:] = 7.0  # the pixels of patch 3
    out = encoder(encoder.embed_image(image, mask)).x_BLD
    assert torch.equal(out, encoder(encoder.embed_image(changed, mask)).x_BLD)
    assert not torch.equal(out, encoder(encoder.embed_image(image)).x_BLD)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for on in (False, True):
        encoder = build(grad_checkpointing=on, drop_path=0.3).train()
        torch.manual_seed(5)
        encoder(encoder.embed_image(torch.ones(4, 3, 32, 32))).x_BLD.square().mean().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_drop_path_drops_whole_samples_in_training_alone() -> None:
    encoder = build(drop_path=0.9)
    image = torch.randn(1, 3, 32, 32).expand(8, -1, -1, -1)
    with torch.no_grad():
        assert torch.equal(encoder(encoder.embed_image(image)).x_BLD[0], encoder(encoder.embed_image(image)).x_BLD[7])
        encoder.train()
        out = encoder(encoder.embed_image(image)).x_BLD
    assert len({tuple(row.flatten().tolist()) for row in out}) > 1
    assert encoder.spec.rates == pytest.approx([0.0, 0.45, 0.9])


@torch.no_grad()
def test_any_run_of_blocks_and_taps() -> None:
    encoder = build()
    tokens = encoder.embed_image(torch.randn(2, 3, 32, 32))
    whole = encoder(tokens)
    low = encoder(tokens, stop=2, norm=False)
    torch.testing.assert_close(encoder(low, start=2).x_BLD, whole.x_BLD)
    taps = encoder.forward_intermediates(tokens, [2, 0], norm=True)
    torch.testing.assert_close(taps[0].x_BLD, whole.x_BLD)
    torch.testing.assert_close(taps[1].x_BLD, encoder.norm(encoder(tokens, stop=1, norm=False).x_BLD))


@torch.no_grad()
def test_attention_maps_explain_the_block() -> None:
    encoder = build()
    tokens = encoder.embed_image(torch.randn(2, 3, 32, 32))
    probabilities = encoder.attention(tokens, 1)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 2, 17))
    attention = encoder.blocks[1].attn
    below = encoder(tokens, stop=1, norm=False).x_BLD
    value = attention._heads(encoder.blocks[1].norm1(below))[2]
    by_hand = attention.proj((probabilities @ value).transpose(1, 2).flatten(2))
    bias = encoder.rel_pos[1](tokens.spans)[None]
    torch.testing.assert_close(by_hand, attention(encoder.blocks[1].norm1(below), bias), rtol=1e-4, atol=1e-5)


def test_routing_is_a_function_of_the_spans() -> None:
    text, image = Span("text", 0, 5), Span("image", 5, 22, (4, 4), 1)
    low, top = frozenset({"image", "text"}), frozenset({"image", "text", "fused"})
    assert route((text, image), low) == (("text", 0, 5), ("image", 5, 22))
    assert route((text, image), top) == (("fused", 0, 22),)
    assert route((text,), top) == (("text", 0, 5),)
    assert route((text,), top, fused=True) == (("fused", 0, 5),)
    assert route((text,), low, fused=True) == (("text", 0, 5),)
    with pytest.raises(ValueError, match="no expert for 'text': this encoder has image"):
        route((text,), frozenset({"image"}))


@torch.no_grad()
def test_pinned_output() -> None:
    """A change of these numbers is a change of the model: give its reason in the commit."""
    encoder = build(**{k: v for k, v in JOINT.items() if k not in SMALL})
    image = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    both = encoder(join(encoder.embed_text(torch.arange(6)[None]), encoder.embed_image(image))).x_BLD
    torch.testing.assert_close(both.std(), torch.tensor(1.014038), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[0, 0, :3], torch.tensor([-0.316718, 2.569716, -0.718114]), rtol=1e-4, atol=1e-4)


def test_one_expert_for_all() -> None:
    """`shared_expert`: a plain transformer; its image pass is that of the tower, its joint pass one feed-forward."""
    shared = build(**JOINT, shared_expert=True)
    assert {tuple(block.names) for block in shared.blocks} == {("image",)}
    ids, image = torch.randint(0, 50, (2, 5)), torch.randn(2, 3, 32, 32)
    own = build(**JOINT)
    with torch.no_grad():
        for one, other in zip(own.blocks, shared.blocks, strict=True):
            for expert in one.experts.values():
                expert.load_state_dict(other.experts["image"].state_dict())
        own.load_state_dict(shared.state_dict(), strict=False)
        joint = [encoder(join(encoder.embed_text(ids), encoder.embed_image(image))) for encoder in (own, shared)]
    torch.testing.assert_close(joint[0].x_BLD, joint[1].x_BLD)
