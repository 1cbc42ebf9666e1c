"""Networks of other libraries before the blocks: tiny ones, with random weights or weights saved here."""

from __future__ import annotations

import json
import shutil
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

import vlbeit
from vlbeit.cli import main
from vlbeit.config import LIBRARIES, DataConfig, ModelConfig, OptimConfig, RunConfig, TextConfig
from vlbeit.data.text import ClipTokenizer, load_tokenizer, train_wordpiece
from vlbeit.errors import UsageError
from vlbeit.models.checkpoint import load, save_checkpoint
from vlbeit.models.encoder import MoMEEncoder, join
from vlbeit.models.groups import beit_decays, layer_id, param_groups, vlmo_decays
from vlbeit.models.heads import Heads
from vlbeit.models.image_tower import ImageTower
from vlbeit.models.presets import PRESETS
from vlbeit.models.spec import EncoderSpec, encoder_spec
from vlbeit.models.towers import load_pretrained, tower_meta
from vlbeit.models.transfer import check_fits, transfer

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": (32, 64)}
JOINT = {"experts": ("image", "text"), "fused_layers": 1, "vocab_size": 60, "text_positions": 12}
CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 1},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
SIZES = (
    "model.embed_dim=32 model.depth=2 model.num_heads=2 model.fused_layers=1 data.workers=0 data.limit=24 "
    "global_batch_size=4 micro_batch_size=4 steps=2"
)
IMAGES = ("timm:test_vit", "timm:test_resnet", "timm:test_convnext", "open_clip:{clip}", "open_clip:{clip_resnet}")
TEXTS = ("transformers:{bert}", "transformers:{t5}", "open_clip:{clip}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Networks as their libraries save them, by the name that stands in braces above."""
    root = tmp_path_factory.mktemp("towers")
    bert, t5, clip, resnet = (root / name for name in ("bert", "t5", "clip", "clip_resnet"))
    torch.manual_seed(0)
    tokenizer = train_wordpiece(lambda: ["is the red circle left of two squares ?"], 60, 12)
    definition = bert.parent / "tokenizer.json"
    definition.write_text(json.dumps(tokenizer.to_json()["definition"]))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "mask", "unk")}
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(definition), **special).save_pretrained(bert)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 24, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=14, **sizes)
    transformers.BertModel(config).save_pretrained(bert)
    config = transformers.T5Config(vocab_size=60, d_model=24, d_kv=12, d_ff=48, num_layers=1, num_heads=2)
    transformers.T5Model(config).save_pretrained(t5)
    small_resnet = {"image_size": 32, "width": 16, "layers": [1, 1, 1, 1]}
    for folder, vision in ((clip, CLIP["vision_cfg"]), (resnet, small_resnet)):
        folder.mkdir()
        values = {"model_cfg": {**CLIP, "vision_cfg": vision}, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
        (folder / "open_clip_config.json").write_text(json.dumps(values))
        kind = open_clip.CLIP if folder is clip else open_clip.CustomTextCLIP  # two ways to name the text side
        model = kind(CLIP["embed_dim"], vision, CLIP["text_cfg"])
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return {"bert": bert, "t5": t5, "clip": clip, "clip_resnet": resnet}


def build(folders: dict[str, Path], **parts) -> MoMEEncoder:
    torch.manual_seed(0)
    named = {k: v.format(**folders) if k.endswith("tower") else v for k, v in parts.items()}
    return MoMEEncoder(EncoderSpec(**{**SMALL, **named})).eval()


class Run(nn.Module):
    """An objective as far as weights go."""

    def __init__(self, encoder: MoMEEncoder) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, Heads({})

    def describe(self) -> dict:
        return {"encoder": self.encoder.spec.to_dict(), "heads": {}}


def without_gradient(encoder: MoMEEncoder, out: torch.Tensor) -> list[str]:
    out.square().sum().backward()
    return [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", IMAGES)
def test_image_towers(folders: dict[str, Path], name: str) -> None:
    encoder = build(folders, image_tower=name)
    rows, columns = encoder.spec.grid
    assert columns == 2 * rows
    tokens = encoder.embed_image(torch.randn(2, 3, 32, 64))
    assert tokens.x_BLD.shape == (2, 1 + rows * columns, 32) and tokens.spans[0].grid == (rows, columns)
    assert without_gradient(encoder, encoder.train()(encoder.embed_image(torch.randn(2, 3, 32, 64))).x_BLD) == []


@pytest.mark.parametrize("name", TEXTS)
def test_text_towers(folders: dict[str, Path], name: str) -> None:
    """Padding changes nothing; every trainable parameter of the joint pass gets a gradient."""
    encoder = build(folders, text_tower=name, **JOINT)
    ids, keep = torch.randint(0, 60, (2, 9)), torch.arange(9) < torch.tensor([[9], [5]])
    both, alone = encoder.embed_text(ids, keep), encoder.embed_text(ids[1:, :5])
    torch.testing.assert_close(both.x_BLD[1, :5], alone.x_BLD[0])
    assert both.spans[0].modality == "text" and both.x_BLD.shape == (2, 9, 32)
    for block in encoder.blocks[1:]:
        block.experts["text"].requires_grad_(False)  # as the vqa objective does
        block.experts["image"].requires_grad_(False)
    out = encoder.train()(join(encoder.embed_text(ids, keep), encoder.embed_image(torch.randn(2, 3, 32, 64))))
    assert without_gradient(encoder, out.x_BLD) == []


@pytest.mark.parametrize("name", IMAGES)
def test_the_library_gives_the_same_features(folders: dict[str, Path], name: str) -> None:
    """The network sees pictures as it was trained on them, however the run normalises its own."""
    facts = {"input_mean": [0.5, 0.4, 0.3], "input_std": [0.2, 0.3, 0.4]}
    encoder = build(folders, image_tower=name, towers={"image": facts})
    pixels = torch.rand(1, 3, 32, 64)
    embed, known = encoder.patch_embed, encoder.patch_embed.facts
    run, own = (
        (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        for mean, std in ((known["input_mean"], known["input_std"]), (known["mean"], known["std"]))
    )
    network = embed.tower.network
    if name == "timm:test_vit":
        assert known["mean"] == list(network.pretrained_cfg["mean"])
        expected = network.forward_features(own)[:, network.num_prefix_tokens :]
    elif name == "open_clip:{clip}":
        assert known["mean"] == [0.1, 0.2, 0.3]
        network.output_tokens = True
        expected = network(own)[1]
    elif name.startswith("timm"):
        expected = network.forward_features(own).flatten(2).transpose(1, 2)
    else:
        expected = network.layer4(network.layer3(network.layer2(network.layer1(network.stem(own)))))
        expected = expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(run)[0], embed.proj(expected), rtol=1e-4, atol=1e-5)


def test_text_side_of_open_clip_is_that_of_the_library(folders: dict[str, Path]) -> None:
    encoder = build(folders, text_tower="open_clip:{clip}", **JOINT)
    network = encoder.text_embed.tower.network
    ids = torch.randint(1, 60, (2, 16))
    network.output_tokens = True
    torch.testing.assert_close(encoder.text_embed(ids), encoder.text_embed.proj(network(ids)[1]))


@pytest.mark.parametrize("image, text", [("timm:test_vit", "transformers:{bert}"), ("open_clip:{clip}",) * 2])
@torch.no_grad()
def test_a_checkpoint_needs_no_other_file(folders: dict[str, Path], tmp_path: Path, image: str, text: str) -> None:
    copies = {name: shutil.copytree(folder, tmp_path / name) for name, folder in folders.items()}
    encoder = build(copies, image_tower=image, text_tower=text, **JOINT)
    run = Run(encoder)
    save_checkpoint(tmp_path / "run", run.state_dict(), run.describe(), {}, {})
    for folder in copies.values():
        shutil.rmtree(folder)
    model = load(tmp_path / "run")
    given = {"image": torch.randn(2, 3, 32, 64), "text_ids": torch.randint(0, 60, (2, 7))}
    expected = encoder(join(encoder.embed_text(given["text_ids"]), encoder.embed_image(given["image"])))
    torch.testing.assert_close(model.encode(**given).x_BLD, expected.x_BLD)
    assert model.encoder.spec == encoder.spec
    tower = ImageTower.from_run(tmp_path / "run")
    expected = encoder(encoder.embed_image(given["image"])).x_BLD
    torch.testing.assert_close(tower.forward_features(given["image"]), expected)


def test_older_specs_are_read() -> None:
    old = {k: v for k, v in EncoderSpec(**SMALL).to_dict().items() if "tower" not in k}
    assert EncoderSpec.from_dict(old) == EncoderSpec(**SMALL)


def weights_of(encoder: MoMEEncoder, modality: str) -> dict[str, torch.Tensor]:
    embed = encoder.patch_embed if modality == "image" else encoder.text_embed
    return {name: value.clone() for name, value in embed.tower.network.state_dict().items()}


@pytest.mark.parametrize("name", ["timm:test_vit@{file}", "open_clip:{clip}", "open_clip:{clip_resnet}"])
def test_pretrained_image_weights(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    file = tmp_path / "vit.safetensors"
    torch.manual_seed(5)
    source = timm.create_model("test_vit", img_size=(32, 64))
    save_file(source.state_dict(), file)
    if name.startswith("open_clip"):
        folder = name.partition(":")[2].format(**folders)
        source = open_clip.create_model(f"local-dir:{folder}", force_custom_text=True).visual
    name = name.format(file=file, **folders)
    encoder = build(folders, image_tower=name.partition("@")[0])
    assert load_pretrained(encoder, ModelConfig(image_tower=name)) == [f"model.image_tower={name}"]
    for key, value in weights_of(encoder, "image").items():
        if key != "positional_embedding":  # of another size
            assert torch.equal(value, source.state_dict()[key]), key


@pytest.mark.parametrize("name", ["transformers:{bert}", "transformers:{t5}", "open_clip:{clip}"])
def test_pretrained_text_weights_and_a_word_more(folders: dict[str, Path], name: str) -> None:
    """A tokenizer may have one word more than the network: its [MASK]."""
    name = name.format(**folders)
    size = 49409 if name.startswith("open_clip") else 80
    encoder = build(folders, text_tower=name, **{**JOINT, "vocab_size": size})
    assert load_pretrained(encoder, ModelConfig(text_tower=name)) == [f"model.text_tower={name}"]
    folder = name.partition(":")[2]
    if name.startswith("open_clip"):
        source = open_clip.create_model(f"local-dir:{folder}", force_custom_text=True).text
    else:
        source = transformers.AutoModel.from_pretrained(folder)
        source = source.get_encoder() if source.config.is_encoder_decoder else source
    for key, value in weights_of(encoder, "text").items():
        theirs = source.state_dict()[key]
        assert torch.equal(value[: len(theirs)], theirs), key
    assert encoder.embed_text(torch.tensor([[size - 1]])).x_BLD.isfinite().all()


def test_weights_come_from_the_run_before_where_it_has_the_tower(folders: dict[str, Path]) -> None:
    name = "open_clip:{clip}".format(**folders)
    encoder = build(folders, image_tower=name)
    before = weights_of(encoder, "image")
    assert load_pretrained(encoder, ModelConfig(image_tower=f"{name}@none")) == []
    assert load_pretrained(encoder, ModelConfig(image_tower=name), encoder.spec) == []
    assert all(torch.equal(value, before[key]) for key, value in weights_of(encoder, "image").items())
    assert load_pretrained(encoder, ModelConfig(image_tower=name), EncoderSpec(**SMALL)) != []


def test_towers_travel_between_runs(folders: dict[str, Path]) -> None:
    parts = {"image_tower": "timm:test_vit", "text_tower": "transformers:{bert}", **JOINT}
    source, target = Run(build(folders, **parts)), Run(build(folders, **parts))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    report = transfer(target, source.state_dict(), source.encoder.spec, target.encoder.spec)
    assert (report.missing, report.unexpected, report.resized) == ([], [], [])
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize("name", IMAGES)
def test_another_image_size(folders: dict[str, Path], name: str) -> None:
    """A network's own positions follow the picture, as its library makes them do."""
    source = Run(build(folders, image_tower=name))
    target = Run(build(folders, image_tower=name, image_size=(64, 96)))
    report = transfer(target, source.state_dict(), source.encoder.spec, target.encoder.spec)
    assert report.missing == report.unexpected == []
    target.encoder.embed_image(torch.randn(1, 3, 64, 96))
    network = target.encoder.patch_embed.tower.network
    if name == "timm:test_vit":
        reference = timm.create_model("test_vit", img_size=(32, 64), num_classes=0)
        reference.load_state_dict(weights_of(source.encoder, "image"), strict=False)
        reference.set_input_size((64, 96))
        assert torch.equal(network.pos_embed, reference.pos_embed)
        assert "encoder.patch_embed.tower.network.pos_embed" in report.resized
    if name == "open_clip:{clip}":
        old, new = (e.patch_embed.tower.network.positional_embedding for e in (source.encoder, target.encoder))
        assert torch.equal(old[0], new[0]) and len(old) == 1 + 2 * 4 and len(new) == 1 + 4 * 6
    tower = ImageTower(source.encoder)
    tower.set_input_size((64, 96))
    assert tower.encoder.spec.grid == target.encoder.spec.grid
    for key, value in weights_of(tower.encoder, "image").items():
        assert torch.equal(value, weights_of(target.encoder, "image")[key]), key


def test_a_foreign_tower_takes_the_place_of_ours_and_not_the_reverse(folders: dict[str, Path]) -> None:
    own, foreign = Run(build(folders)), Run(build(folders, image_tower="timm:test_vit", patch_size=16))
    check_fits(own.encoder.spec, foreign.encoder.spec, "runs/mim")
    report = transfer(foreign, own.state_dict(), own.encoder.spec, foreign.encoder.spec)
    assert report.unexpected == ["encoder.patch_embed.proj.bias", "encoder.patch_embed.proj.weight"]
    assert {name.partition("encoder.")[2].partition(".")[0] for name in report.missing} == {"patch_embed"}
    assert "encoder.rel_pos.0.image" in report.resized and "encoder.cls_token" in report.loaded
    with pytest.raises(UsageError, match=r"set model\.image_tower=timm:test_vit, or init=none"):
        check_fits(foreign.encoder.spec, own.encoder.spec, "runs/vl")


def test_another_network_takes_no_weights_by_chance(folders: dict[str, Path]) -> None:
    first, second = (Run(build(folders, image_tower=name)) for name in ("timm:test_vit", "timm:test_vit2"))
    report = transfer(second, first.state_dict(), first.encoder.spec, second.encoder.spec)
    assert not [name for name in (*report.loaded, *report.resized) if "patch_embed" in name]


def test_a_text_tower_goes_with_its_tokenizer(folders: dict[str, Path]) -> None:
    own, foreign = build(folders, **JOINT).spec, build(folders, text_tower="transformers:{bert}", **JOINT).spec
    for source, target in ((own, foreign), (foreign, own)):
        with pytest.raises(UsageError, match="and its tokenizer, this run"):
            check_fits(source, target, "runs/mlm")
    check_fits(EncoderSpec(**SMALL), foreign, "runs/mim")
    check_fits(foreign, EncoderSpec(**SMALL), "runs/vl")  # a task on images alone


def test_parameter_groups(folders: dict[str, Path]) -> None:
    """All of a tower is layer 0, under the embeddings; its vectors do not decay under either rule."""
    run = Run(build(folders, image_tower="open_clip:{clip}", text_tower="transformers:{bert}", **JOINT))
    names = [name for name, p in run.named_parameters() if ".tower." in name and p.requires_grad]
    assert {layer_id(name, 2, False) for name in names} == {0}
    for rule in (beit_decays, vlmo_decays):
        decayed = {name for name, p in run.named_parameters() if rule(name, p)}
        assert {f"encoder.{p}_embed.proj.weight" for p in ("patch", "text")} <= decayed
        assert not [name for name in names if name in decayed and ("bias" in name or "Norm" in name or ".ln_" in name)]
    groups = param_groups(run, OptimConfig(layer_decay=0.5), vlmo_decays)
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert set(names) <= scale.keys() and {scale[name] for name in names} == {0.5**3}


def config(**model) -> RunConfig:
    return RunConfig(model=replace(PRESETS["tiny"], **model), data=DataConfig(image_size=64))


def test_names_are_checked() -> None:
    for modality, wrong in (
        ("image", "resnet50"),
        ("image", "transformers:x"),
        ("text", "timm:x"),
        ("text", "open_clip:"),
    ):
        with pytest.raises(UsageError, match=f"is not own or {LIBRARIES[modality][0]}:NAME or open_clip:NAME"):
            ModelConfig(**{f"{modality}_tower": wrong})
    assert config(image_tower="timm:test_vit@none", patch_size=24).data.size == (64, 64), "our patches play no part"


def test_the_tokenizer_follows_the_text_tower(folders: dict[str, Path]) -> None:
    name = str(folders["bert"])
    run = config(text_tower=f"transformers:{name}@none")
    assert run.text.tokenizer == name and config(text_tower="open_clip:ViT-B-32@openai").text.tokenizer == "clip"
    with pytest.raises(UsageError, match=r"needs its own tokenizer: set text\.tokenizer=clip, not some/bert"):
        replace(run, model=ModelConfig(text_tower="open_clip:x@none"), text=TextConfig(tokenizer="some/bert"))
    vocab_size = load_tokenizer(run.text.tokenizer, 12).vocab_size
    spec = encoder_spec(run, experts=("image", "text"), fused=True, vocab_size=vocab_size)
    assert spec.text_tower == f"transformers:{name}" and MoMEEncoder(spec).text_embed.tower.network.config.vocab_size
    assert ClipTokenizer({}, 12).vocab_size == 49408 + 1


def test_masked_image_modeling_is_refused() -> None:
    with pytest.raises(UsageError, match=r"stage=mim masks patches of its own: set model\.image_tower=own"):
        encoder_spec(config(image_tower="timm:test_vit@none"), mask_token=True)


def test_meta_describes_the_towers(folders: dict[str, Path], tmp_path: Path) -> None:
    bert = shutil.copytree(folders["bert"], tmp_path / "bert")
    run = config(image_tower="timm:test_vit", text_tower=f"transformers:{bert}")
    run.text = replace(run.text, max_length=14)
    meta = tower_meta(run, {})
    assert json.loads(json.dumps(meta)) == meta and meta["towers"].keys() == {"image", "text"}
    shutil.rmtree(bert)
    assert tower_meta(run, meta) == meta, "the run before knows it"
    with pytest.raises(UsageError, match=f"model.text_tower=transformers:{bert}: "):
        tower_meta(run, {})
    run.text = replace(run.text, max_length=15)
    with pytest.raises(UsageError, match=r"text\.max_length=15 is longer than the 14 tokens"):
        tower_meta(run, meta)
    assert tower_meta(config(), meta) == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_vitt", "timm has no model test_vitt; nearest: test_vit"),
        ("timm:efficientformer_l1", "data.image_size=32x64: "),
        ("open_clip:ViT-B-33", "open_clip has no model ViT-B-33"),
    ],
)
def test_what_cannot_be_built_is_named(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^model.image_tower={name}: .*{message}"):
        MoMEEncoder(EncoderSpec(**SMALL, image_tower=name))


@pytest.mark.parametrize(
    ("name", "message"),
    [("roberta-ViT-B-32", "transformers:roberta-base"), ("ViT-B-16-SigLIP", "not that of CLIP")],
)
def test_texts_that_open_clip_reads_otherwise(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tower_meta(config(text_tower=f"open_clip:{name}@none"), {})


def test_weights_that_are_not_to_be_had(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(folders, image_tower="timm:test_vit")
    with pytest.raises(
        UsageError, match=r"timm:test_vit@/nowhere\.pth: no weights: .*; without network it takes"
    ) as error:
        load_pretrained(encoder, ModelConfig(image_tower="timm:test_vit@/nowhere.pth"))
    assert "\n" not in str(error.value)

    def offline(*arguments: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UsageError, match=r"timm:test_vit: no weights: no route to host; .* @none for random ones"):
        load_pretrained(encoder, ModelConfig(image_tower="timm:test_vit"))
    towers = {"image": {"config": {"vision_cfg": {}}}}
    encoder.spec = replace(encoder.spec, image_tower="open_clip:ViT-B-32", towers=towers)
    with pytest.raises(UsageError, match="say which weights: ViT-B-32@TAG with one of openai"):
        load_pretrained(encoder, ModelConfig(image_tower="open_clip:ViT-B-32"))


def test_from_the_command_line(folders: dict[str, Path], scenes: Path, tmp_path: Path, capsys) -> None:
    """Two towers: a vl run, a task on it without their source, an answer."""
    bert = shutil.copytree(folders["bert"], tmp_path / "bert")
    towers = ["model.image_tower=timm:test_vit@none", f"model.text_tower=transformers:{bert}", "text.max_length=14"]
    words = [f"data.root={scenes}", *SIZES.split(), *towers]
    with chdir(tmp_path):
        assert main(["train", "stage=vl", "init=none", *words]) == 0
        out = capsys.readouterr().out
        assert f"model.text_tower=transformers:{bert}: pre-trained weights loaded" in out
        assert "starting from scratch" in out and "timm:test_vit@none: pre" not in out
        assert f"next: vlbeit train stage=vl task=vqa data.root={scenes} {' '.join(towers[:2])}" in out
        shutil.rmtree(bert)
        assert main(["train", "task=vqa", "task.min_count=1", *words]) == 0
        assert "pre-trained" not in capsys.readouterr().out
        picture = next((scenes / "val2014").glob("*.jpg"))
        answers = vlbeit.pipeline("runs/vl-vqa")(str(picture), "how many circles are there?", top=2)
        assert len(answers) == 2
        assert main(["train", "stage=mim", "init=none", "stage.target=pixels", *words]) == 2
        assert "set model.image_tower=own" in capsys.readouterr().err
        assert main(["train", "task=vqa", "run=runs/other", *words[:-3]]) == 2
        assert "set model.image_tower=timm:test_vit" in capsys.readouterr().err
