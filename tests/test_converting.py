"""`vlbeit convert`: any checkpoint to ours, ours to other programs, and what is said about it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

import vlbeit
from vlbeit.cli import main
from vlbeit.models.checkpoint import read_checkpoint, save_checkpoint
from vlbeit.models.convert import convert
from vlbeit.models.convert.layout import Hints
from vlbeit.models.encoder import MoMEEncoder
from vlbeit.models.heads import Heads
from vlbeit.models.pyramid import taps, to_map
from vlbeit.models.spec import EncoderSpec
from vlbeit.models.writing import write_tensors

GOLDEN = Path(__file__).parent / "golden/beit"
CLASSIFIER = {"classification": {"kind": "classification", "dim": 32, "num_classes": 3}}
MIM = {"masked_patch": {"kind": "masked_patch", "dim": 32, "dim_out": 11}}
SEGMENTATION = {
    "necks": {"kind": "feature_necks", "dim": 32},
    "segmentation": {"kind": "upernet", "dim": 32, "num_classes": 3},
    "auxiliary": {"kind": "fcn", "dim": 32, "num_classes": 3, "channels": 16},
}
SETR = {"segmentation": {"kind": "setr_pup", "dim": 32, "num_classes": 3, "channels": 16}}
SIZES: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 4, "image_size": (64, 64)}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "classification": ({"final_norm": False}, CLASSIFIER),
    "mim": ({"positions": "shared", "mask_token": True}, MIM),
    "vl": ({"experts": ("image", "text"), "fused_layers": 1, "vocab_size": 50, "text_positions": 8}, {}),
    "vl absolute": (
        {"experts": ("image", "text"), "vocab_size": 50, "text_positions": 8, "positions": "absolute"},
        {"pooler": {"kind": "pooler", "dim": 32}},
    ),
    "text": ({"experts": ("text",), "image_size": None, "vocab_size": 50}, {}),
    "segmentation": ({"final_norm": False, "depth": 6}, SEGMENTATION),
    "setr": ({"final_norm": False}, SETR),
    "wide": ({"final_norm": False, "image_size": (32, 64), "layer_scale": 0.0}, CLASSIFIER),
}


def made(folder: Path, kind: str, **config: Any) -> Path:
    """A run folder of ours with a checkpoint, every tensor random."""
    settings, heads = RUNS[kind]
    spec = EncoderSpec(**{**SIZES, **settings})
    torch.manual_seed(5)
    parts = torch.nn.ModuleDict({"encoder": MoMEEncoder(spec), "heads": Heads(heads)})
    given = parts.state_dict()
    state = {n: torch.randn_like(v) * 0.1 if v.is_floating_point() else v for n, v in given.items()}
    for name in [name for name in state if name.endswith("running_var")]:
        state[name] = state[name].exp()
    meta = {"classes": ["cat", "dog", "eel"]} if heads in (CLASSIFIER, SEGMENTATION, SETR) else {}
    save_checkpoint(folder / "checkpoint", state, {"encoder": spec.to_dict(), "heads": heads}, config, meta)
    return folder


def image(*size: int) -> torch.Tensor:
    return torch.randn(2, 3, *(size or (64, 64)), generator=torch.Generator().manual_seed(3))


def logits(folder: Path, x: torch.Tensor) -> torch.Tensor:
    found = read_checkpoint(folder)
    parts = torch.nn.ModuleDict(
        {"encoder": MoMEEncoder(found.encoder_spec), "heads": Heads(found.description["heads"])}  # type: ignore[arg-type]
    )
    parts.load_state_dict(found.state)
    parts.eval()
    with torch.inference_mode():
        tokens = parts["encoder"](parts["encoder"].embed_image(x)).x_BLD
        return parts["heads"]["classification"](tokens)


@pytest.mark.parametrize("name", ["beit_cls_relpos", "beit_mim_shared_relpos"])
def test_official_file_to_ours_and_on(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = GOLDEN / f"{name}.weights.safetensors"
    assert main(["convert", str(source), str(tmp_path / "ours")]) == 0
    out = capsys.readouterr().out
    assert "unilm BEiT" in out and f"wrote {tmp_path}/ours/config.json" in out and "next: vlbeit train" in out
    assert vlbeit.load(tmp_path / "ours").encoder is not None
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "official"), "--to", "unilm"]) == 0
    back = torch.load(tmp_path / "official/model.pth", weights_only=True)["model"]
    official = {key: value for key, value in load_file(source).items() if not key.endswith("relative_position_index")}
    assert back.keys() == official.keys() and all(torch.equal(back[key], official[key]) for key in official)


@pytest.mark.parametrize(("kind", "normalize"), [("classification", "imagenet"), ("wide", "half")])
def test_classifier_to_timm(kind: str, normalize: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", kind, data={"normalize": normalize})
    x = image() if kind == "classification" else image(32, 64)
    assert main(["convert", str(run), str(tmp_path / "out"), "--to", "timm"]) == 0
    out = capsys.readouterr().out
    assert "bit for bit" in out and "not in timm" not in out and "local-dir:" in out
    theirs = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(x), logits(run, x), atol=1e-5, rtol=1e-5)
    assert theirs.pretrained_cfg["mean"][0] == (0.485 if normalize == "imagenet" else 0.5)
    assert theirs.pretrained_cfg["label_names"] == ["cat", "dog", "eel"]
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    first, again = read_checkpoint(run), read_checkpoint(tmp_path / "again")
    assert all(torch.equal(again.state[name], value) for name, value in first.state.items())
    assert again.description["normalize"] == normalize
    assert again.encoder_spec.image_size == first.encoder_spec.image_size  # type: ignore[union-attr]


def test_classifier_to_transformers_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", "classification", data={"normalize": "imagenet"})
    assert main(["convert", str(run), str(tmp_path / "out"), "--to", "transformers"]) == 0
    assert "BeitForImageClassification" in capsys.readouterr().out
    theirs = transformers.BeitForImageClassification.from_pretrained(tmp_path / "out").eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(image()).logits, logits(run, image()), atol=1e-5, rtol=1e-5)
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    first, again = read_checkpoint(run), read_checkpoint(tmp_path / "again")
    assert all(torch.equal(again.state[name], value) for name, value in first.state.items())
    assert again.description["normalize"] == "imagenet"


def test_what_the_target_cannot_hold_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(made(tmp_path / "mim", "mim")), str(tmp_path / "a"), "--to", "timm"]) == 0
    out = capsys.readouterr().out
    for name in ("encoder.mask_token", "heads.masked_patch.weight", "heads.masked_patch.bias"):
        assert f"not in timm: {name}\n" in out
    assert main(["convert", str(tmp_path / "mim"), str(tmp_path / "b"), "--to", "transformers"]) == 0
    assert "not in transformers" not in capsys.readouterr().out
    assert main(["convert", str(made(tmp_path / "vl", "vl")), str(tmp_path / "c"), "--to", "timm"]) == 0
    out = capsys.readouterr().out
    for line in (
        "not in timm: encoder.blocks.*.experts.text.mlp.fc1.weight (2)",
        "not in timm: encoder.blocks.1.experts.fused.norm.weight",
        "not in timm: encoder.rel_pos.*.text (2)",
        "not in timm: encoder.type_embed.weight",
    ):
        assert f"{line}\n" in out
    changed = [line.rpartition(" ")[2] for line in out.splitlines() if line.startswith("changed")]
    assert changed == ["encoder.cls_token", "encoder.patch_embed.proj.bias"]


@pytest.mark.parametrize(("to", "out"), [("timm", "out"), ("timm", "out.pth"), ("unilm", "out.pth")])
def test_what_was_written_is_read_again(
    to: str, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaging(path: Path, state: dict[str, torch.Tensor]) -> Path:
        return write_tensors(path, {**state, "blocks.0.norm1.bias": torch.zeros(32)})

    monkeypatch.setattr("vlbeit.converting.write_tensors", damaging)
    run = made(tmp_path / "run", "classification")
    assert main(["convert", str(run), str(tmp_path / out), "--to", to]) == 1
    assert "encoder.blocks.0.norm1.bias is not as it was written (1 tensors)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["classification", "mim", "vl", "vl absolute", "wide"])
def test_to_unilm_and_back(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", kind)
    assert main(["convert", str(run), str(tmp_path / "out.pth"), "--to", "unilm"]) == 0
    out = capsys.readouterr().out
    first = read_checkpoint(run)
    assert f"to unilm: {len(first.state)} tensors, bit for bit" in out and "not in unilm" not in out
    spec = first.encoder_spec
    hints = Hints(num_heads=4, image_size=spec.image_size, text_positions=8)  # type: ignore[union-attr]
    back = convert(torch.load(tmp_path / "out.pth", weights_only=True)["model"], hints)
    assert back.state.keys() == first.state.keys()
    assert all(torch.equal(value, first.state[name]) for name, value in back.state.items())


@pytest.mark.parametrize("to", ["timm", "transformers"])
def test_image_part_with_absolute_positions(to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", "vl absolute")
    assert main(["convert", str(run), str(tmp_path / "out"), "--to", to]) == 0
    assert f"not in {to}: heads.pooler.dense.weight\n" in capsys.readouterr().out
    with torch.inference_mode():
        if to == "timm":
            tokens = timm.create_model(f"local-dir:{tmp_path}/out", pretrained=True).eval().forward_features(image())
        else:
            tokens = transformers.BeitModel.from_pretrained(tmp_path / "out").eval()(image()).last_hidden_state
    torch.testing.assert_close(tokens, vlbeit.load(run).encode(image=image()).x_BLD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("to", ["timm", "transformers", "unilm"])
def test_an_empty_conversion_is_refused(to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", "text")
    assert main(["convert", str(run), str(tmp_path / "out"), "--to", to]) == 2
    assert "text alone" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_one_file_for_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", "classification")
    for suffix in (".pth", ".safetensors"):
        file = tmp_path / f"out{suffix}"
        assert main(["convert", str(run), str(file), "--to", "timm"]) == 0
        code = shlex.split(capsys.readouterr().out.rpartition("next: ")[2])[2]
        theirs = eval(code.partition("print(")[2][:-1], {"timm": timm}).eval()  # what the last line tells to type
        with torch.inference_mode():
            torch.testing.assert_close(theirs(image()), logits(run, image()), atol=1e-5, rtol=1e-5)


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = made(tmp_path / "run", "classification"), tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert main(["convert", str(run), str(out)]) == 2
    assert "not empty" in capsys.readouterr().err and [file.name for file in out.iterdir()] == ["notes.txt"]
    assert main(["convert", str(run), str(out), "--overwrite"]) == 0
    assert (out / "notes.txt").read_text() == "mine" and vlbeit.load(out).meta["classes"] == ["cat", "dog", "eel"]
    file = tmp_path / "out.pth"
    file.write_bytes(b"mine")
    assert main(["convert", str(run), str(file), "--to", "timm"]) == 2 and file.read_bytes() == b"mine"
    before = (run / "checkpoint/config.json").read_bytes()
    assert main(["convert", str(run), str(run / "checkpoint"), "--to", "timm", "--overwrite"]) == 2
    assert (run / "checkpoint/config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{run}", "{out}", "--to", "keras"], "--to=keras is not one of vlbeit, timm"),
        (["{out}", "{out}"], "/out: no such"),
        (["{run}", "{run}.pth", "--to", "transformers"], "writes a folder"),
        (["{run}", "{out}", "--image-size", "224x"], "--image-size=224x is no size in pixels"),
        (["{run}", "{out}", "--image-size", "2x3x4"], "is no size in pixels: 224, or for another shape HEIGHTxWIDTH"),
        (["{run}", "{out}", "--normalize", "clip"], "normalize=clip is not one of half, imagenet"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", "classification")
    assert main(["convert", *(word.format(run=run, out=tmp_path / "out") for word in words)]) in (1, 2)
    assert message in capsys.readouterr().err


def test_a_tensor_without_a_place_must_be_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load_file(GOLDEN / "beit_cls_relpos.weights.safetensors") | {"teacher.weight": torch.ones(3)}
    save_file(state, tmp_path / "file.safetensors")
    words = ["convert", str(tmp_path / "file.safetensors"), str(tmp_path / "out")]
    assert main(words) == 1
    assert "teacher.weight" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*words, "--allow", "teacher.*"]) == 0
    assert "unexpected: teacher.weight" in capsys.readouterr().out


@pytest.mark.parametrize("to", ["vlbeit", "timm"])
def test_a_missing_tensor_is_refused_whatever_is_allowed(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(GOLDEN / "beit_cls_relpos.weights.safetensors")
    del state["blocks.1.mlp.fc1.bias"]
    save_file(state, tmp_path / "file.safetensors")
    words = ["convert", str(tmp_path / "file.safetensors"), str(tmp_path / "out"), "--to", to, "--allow", "*fc1.bias"]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "lacks encoder.blocks.1.experts.image.mlp.fc1.bias (1 missing)" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert vlbeit.load(tmp_path / "file.safetensors", allow=["*fc1.bias"]).report.missing


def test_hints_reach_the_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 64, "num_classes": 3}
    theirs = timm.create_model("beit_base_patch16_224", **size, use_rel_pos_bias=False, use_abs_pos_emb=True)
    save_file(theirs.state_dict(), tmp_path / "file.safetensors")
    words = ["convert", str(tmp_path / "file.safetensors"), str(tmp_path / "out")]
    assert main(words) == 2
    assert "--num-heads" in capsys.readouterr().err
    assert main([*words, "--num-heads", "4"]) == 0
    assert read_checkpoint(tmp_path / "out").description["encoder"]["num_heads"] == 4


def test_config_of_another_model_beside_a_file_tells_nothing(tmp_path: Path) -> None:
    size = {"embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 64, "num_classes": 3}
    theirs = timm.create_model("beit_base_patch16_224", **size)
    other = {"model_type": "beit", "num_attention_heads": 2, "hidden_act": "relu"}
    (tmp_path / "config.json").write_text(json.dumps(other))
    torch.save(theirs.state_dict(), tmp_path / "ft.pth")
    assert main(["convert", str(tmp_path / "ft.pth"), str(tmp_path / "out")]) == 0
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")  # its own
    assert main(["convert", str(tmp_path / "pytorch_model.bin"), str(tmp_path / "out2")]) == 1


def test_config_beside_foreign_weights_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BeitConfig(**small, image_size=64, use_absolute_position_embeddings=True)
    transformers.BeitForImageClassification(config).save_pretrained(tmp_path / "theirs")
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "out")]) == 0
    assert read_checkpoint(tmp_path / "out").description["encoder"]["num_heads"] == 4
    values = json.loads((tmp_path / "theirs/config.json").read_text()) | {"hidden_act": "relu"}
    (tmp_path / "theirs/config.json").write_text(json.dumps(values))
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "other")]) == 1
    assert "hidden_act=relu" in capsys.readouterr().err


@pytest.mark.parametrize("run", ["mim", "mlm", "vl", "vl-vqa", "mim-classification"])
def test_runs_that_were_trained_here(run: str, in_chain: Path, tmp_path: Path) -> None:
    x = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    assert main(["convert", f"runs/{run}", str(tmp_path / "timm"), "--to", "timm"]) == 0
    assert main(["convert", f"runs/{run}", str(tmp_path / "transformers"), "--to", "transformers"]) == 0
    theirs = timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True).eval()
    (name,) = json.loads((tmp_path / "transformers/config.json").read_text())["architectures"]
    also = getattr(transformers, name).from_pretrained(tmp_path / "transformers").eval()
    encoder = vlbeit.load(f"runs/{run}").encoder
    assert encoder is not None
    with torch.inference_mode():
        tokens = encoder(encoder.embed_image(x)).x_BLD
        torch.testing.assert_close(theirs.forward_features(x), tokens, atol=1e-5, rtol=1e-5)
        if name == "BeitModel":
            torch.testing.assert_close(also(x).last_hidden_state, tokens, atol=1e-5, rtol=1e-5)
        elif name == "BeitForImageClassification":
            torch.testing.assert_close(also(x).logits, theirs(x), atol=1e-5, rtol=1e-5)


def test_a_tokenizer_run_goes_nowhere(in_chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "runs/tokenizer", str(tmp_path / "out"), "--to", "timm"]) == 2
    assert "no image tower" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_shared_run_can_be_evaluated(in_chain: Path, tmp_path: Path) -> None:
    vlbeit.load("runs/mim-classification").save_pretrained(tmp_path / "shared")
    before = json.loads((tmp_path / "shared/evaluation.json").read_text())
    assert main(["evaluate", str(tmp_path / "shared")]) == 0
    assert json.loads((tmp_path / "shared/evaluation.json").read_text())["top1"] == pytest.approx(before["top1"])


def test_segmentation_to_transformers_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", "segmentation", data={"normalize": "imagenet"})
    assert main(["convert", str(run), str(tmp_path / "out"), "--to", "transformers"]) == 0
    out = capsys.readouterr().out
    assert "BeitForSemanticSegmentation" in out and "not in" not in out and "new there" not in out
    theirs, info = transformers.BeitForSemanticSegmentation.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and theirs.config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    model = vlbeit.load(run)
    assert model.encoder is not None
    with torch.inference_mode():
        tokens = model.encoder.forward_intermediates(model.encoder.embed_image(image()), taps(6))
        want = model.heads["segmentation"](model.heads["necks"]([to_map(each) for each in tokens]))
        torch.testing.assert_close(theirs.eval()(image()).logits, want, atol=1e-5, rtol=1e-5)
    assert main(["convert", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    first, again = read_checkpoint(run), read_checkpoint(tmp_path / "again")
    assert again.state.keys() == first.state.keys() and again.meta == first.meta
    assert all(torch.equal(again.state[name], value) for name, value in first.state.items())
    assert again.description["normalize"] == "imagenet"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_segmentation_to_unilm_and_back(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = made(tmp_path / "run", "segmentation"), tmp_path / f"out{suffix}"
    assert main(["convert", str(run), str(file), "--to", "unilm"]) == 0
    first = read_checkpoint(run)
    out = capsys.readouterr().out
    assert f"to unilm: {len(first.state)} tensors, bit for bit" in out and "not in" not in out
    assert "semantic_segmentation" in out
    if suffix == ".pth":
        assert "decode_head.conv_seg.weight" in torch.load(file, weights_only=True)["state_dict"]
    again = read_checkpoint(file)
    assert again.report.layout == "UPerNet of mmsegmentation" and again.state.keys() == first.state.keys()
    assert all(torch.equal(value, first.state[name]) for name, value in again.state.items())


@pytest.mark.parametrize("to", ["timm", "transformers", "unilm"])
def test_of_setr_the_tower_goes_out(to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run", "setr")
    assert main(["convert", str(run), str(tmp_path / "out"), "--to", to]) == 0
    assert f"not in {to}: heads.segmentation.classifier.weight" in capsys.readouterr().out
    first, again = read_checkpoint(run), vlbeit.load(tmp_path / "out")
    assert again.encoder is not None and "segmentation" not in again.heads
    state = again.encoder.state_dict()
    assert all(torch.equal(v, first.state[f"encoder.{n}"]) for n, v in state.items())


def test_backbone_of_a_segmentation_folder_needs_no_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BeitConfig(
        **small, image_size=64, use_relative_position_bias=True, out_indices=[1, 2, 3, 4], num_labels=3
    )
    transformers.BeitForSemanticSegmentation(config).save_pretrained(tmp_path / "theirs")
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "out")]) == 0
    # its first map is the embedding itself, which is no block's output
    assert "unexpected: decode_head." in capsys.readouterr().out
    assert vlbeit.load(tmp_path / "out").encode(image=image()).x_BLD.shape == (2, 17, 32)


def test_pictures_are_prepared_as_the_folder_says(tmp_path: Path) -> None:
    run = made(tmp_path / "run", "classification", data={"normalize": "imagenet"})
    for to in ("timm", "transformers"):
        assert main(["convert", str(run), str(tmp_path / to), "--to", to]) == 0
        assert vlbeit.load(tmp_path / to).normalize == "imagenet"
        assert vlbeit.load(tmp_path / to, normalize="half").normalize == "half"
