"""Runs that start from official files: what is taken, what is said, what is refused before any work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlbeit
from vlbeit.adopt import folder_for
from vlbeit.cli import main
from vlbeit.compose import compose
from vlbeit.models import fetch
from vlbeit.models.image_tower import ImageTower
from vlbeit.models.known import KNOWN, Published

TINY = (
    "model.embed_dim=24",
    "model.depth=4",
    "model.num_heads=2",
    "model.fused_layers=2",
    "model.layer_scale=0.1",
    "data.workers=0",
    "global_batch_size=4",
    "micro_batch_size=2",
    "steps=1",
    "data.limit=12",
    "data.image_size=48",
    "optim.lr=1e-12",
    "optim.warmup_steps=0",
)


@pytest.fixture
def train(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`vlbeit train` in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["train", f"data.root={scenes}", *TINY, *words])
        out = capsys.readouterr()
        return code, out.out, out.err

    return call


def test_classification_from_a_fine_tuned_beit(train, unilm) -> None:
    state = unilm.beit(grid=(2, 2), classes=1000)
    torch.save({"model": state}, "beit.pth")
    code, out, _ = train("stage=mim", "task=classification", "init=beit.pth")
    assert code == 0
    said = next(line for line in out.splitlines() if line.startswith("starting from beit.pth: "))
    assert "4 resized (rel_pos)" in said and "2 new (head classification)" in said
    own = load_file("runs/mim-classification/checkpoint/model.safetensors")
    torch.testing.assert_close(own["encoder.blocks.2.attn.qkv.weight"], state["blocks.2.attn.qkv.weight"])
    torch.testing.assert_close(own["heads.classification.fc_norm.bias"], state["fc_norm.bias"])
    last = state["blocks.1.attn.relative_position_bias_table"][-3:]
    torch.testing.assert_close(own["encoder.rel_pos.1.image"][-3:], last)
    assert vlbeit.load("runs/mim-classification").encoder.spec.image_size == (48, 48)


def test_pictures_normalised_otherwise_are_named(train, unilm) -> None:
    torch.save({"model": unilm.beit(grid=(2, 2), classes=5)}, "beit.pth")
    said = "note: pictures were normalised as data.normalize=half for these weights, and are as imagenet here"
    words = ("stage=mim", "task=classification", "init=beit.pth")
    assert said in train(*words, "data.normalize=imagenet")[1]
    assert "note: pictures" not in train(*words, "run=other")[1]


def test_vl_from_a_pretrained_vlmo(train, unilm, chain: Path) -> None:
    torch.save({"state_dict": unilm.vlmo(side=3, parts=("itc", "itm", "mlm"))}, "vlmo.pt")
    code, out, err = train("stage=vl", "init=vlmo.pt")
    assert code == 2 and "vocabulary of 30 words, and does not say which: text.tokenizer= names" in err
    tokenizer = f"text.tokenizer={chain / 'runs/vl'}"
    code, out, err = train("stage=vl", "init=vlmo.pt", tokenizer)
    words = int(re.search(r"has a vocabulary of 30, this run (\d+): use its tokenizer", err)[1])
    assert code == 2 and not Path("runs").exists()
    state = unilm.vlmo(side=3, parts=("itc", "itm", "mlm"), words=words)
    torch.save({"state_dict": state}, "vlmo.pt")
    code, out, _ = train("stage=vl", "init=vlmo.pt", "text.positions=196", tokenizer)
    said = next(line for line in out.splitlines() if line.startswith("starting from vlmo.pt: "))
    assert code == 0 and "new (" not in said and "not used" not in said and "resized" not in said
    own = load_file("runs/vl/checkpoint/model.safetensors")
    torch.testing.assert_close(own["heads.contrast_fused.logit_scale"], state["logit_vl_scale"])
    torch.testing.assert_close(own["encoder.rel_pos.3.text"], state["relative_position_bias_table"][-392:, 6:])


def test_a_published_name(train, unilm, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table of names knows beside the tensors is used; the file is fetched by its name."""
    torch.save(unilm.beit(grid=(3, 3), positions="absolute", layer_scale=False), "kept.pth")
    hints = {"num_heads": 3, "image_size": (48, 48), "normalize": "imagenet"}
    known = Published("toy_beit", "a toy", "mim", ("https://x/toy.pth",), "MIT", "", hints)
    monkeypatch.setitem(KNOWN, "toy_beit", known)
    monkeypatch.setattr(fetch, "fetch", lambda published, report: Path("kept.pth"))
    model = vlbeit.load("toy_beit")
    assert model.encoder.spec.num_heads == 3 and model.normalize == "imagenet"
    assert vlbeit.load("toy_beit", num_heads=2).encoder.spec.num_heads == 2
    words = ("model.num_heads=3", "model.positions=absolute", "model.layer_scale=0.0")
    code, out, _ = train("stage=mim", "task=classification", "init=toy_beit", *words)
    assert code == 0 and "starting from kept.pth: " in out
    code, _, err = train("stage=mim", "task=classification", "init=toy_beid", "run=other", *words)
    assert code == 2 and "init=toy_beid: no such file" in err and "did you mean toy_beit?" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model.depth=3",), "init=beit.pth has model.depth=4, this run has 3"),
        (("init=none.pth",), "init=none.pth: no such file or folder, and no published name"),
        (("init=text.pth",), "text.pth"),
        (("init=other.pth",), "other.pth: 1 tensors named fc.weight, ...: not a BEiT, VLMo or image tokenizer"),
        (("init=extra.pth",), r"extra.pth (unilm BEiT): 1 have no place (extra.bias)"),
        (("init=absolute.pth",), "`vlbeit convert FILE DIR --num-heads 12`"),
    ],
)
def test_what_is_refused_before_any_work(train, unilm, words: tuple[str, ...], message: str) -> None:
    state = unilm.beit(grid=(3, 3))
    torch.save(state, "beit.pth")
    torch.save({**state, "extra.bias": torch.zeros(1)}, "extra.pth")
    torch.save({"fc.weight": torch.zeros(2, 2)}, "other.pth")
    torch.save(unilm.beit(grid=(3, 3), positions="absolute"), "absolute.pth")
    Path("text.pth").write_text("not weights")
    init = () if any(word.startswith("init=") for word in words) else ("init=beit.pth",)
    code, _, err = train("stage=mim", "task=classification", *init, *words)
    assert code in (1, 2) and message in err and err.count("\n") == 1
    assert not Path("runs").exists()


def test_official_files_have_no_task_of_their_own(unilm, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(unilm.beit(grid=(3, 3), classes=3), tmp_path / "beit.pth")
    assert main(["evaluate", str(tmp_path / "beit.pth")]) == 2
    assert "carries no config: `vlbeit evaluate" in capsys.readouterr().err


def test_fine_tuned_weights_of_others_are_evaluated(
    unilm, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No training run is needed; the number is that of the same weights through `vlbeit.load`; published beside it."""
    monkeypatch.chdir(tmp_path)
    classes = len([folder for folder in (scenes / "imagefolder" / "train").iterdir() if folder.is_dir()])
    torch.save({"model": unilm.beit(grid=(3, 3), classes=classes)}, "toy_beit.pth")
    known = Published("toy_beit", "", "classification", ("https://x",), "MIT", "", {}, metrics={"top1": 12.5})
    monkeypatch.setitem(KNOWN, "toy_beit", known)
    monkeypatch.setattr(fetch, "fetch", lambda published, report: Path("toy_beit.pth"))
    words = ("task=classification", f"data.root={scenes / 'imagefolder'}", "data.workers=0")
    assert main(["evaluate", "toy_beit", *words]) == 0
    out = capsys.readouterr().out
    assert "published" in out and "12.5" in out and "wrote runs/toy_beit-classification/evaluation.json" in out
    assert "next: vlbeit train init=toy_beit data=imagefolder model=base" in out
    found = json.loads(Path("runs/toy_beit-classification/evaluation.json").read_text())
    details = json.loads(Path("runs/toy_beit-classification/classification_details.json").read_text())
    tower, model = ImageTower.from_run("toy_beit.pth"), vlbeit.load("toy_beit.pth")
    names = sorted(folder.name for folder in (scenes / "imagefolder" / "train").iterdir() if folder.is_dir())
    for row in details:
        picture = scenes / "imagefolder" / "val" / row["sample_id"]
        guess = names[int(tower(model.transform(picture)[None]).argmax())]
        assert (guess == picture.parent.name) == bool(row["score"])
    assert found["images"] == len(details) > 0

    torch.save({"model": unilm.beit(grid=(3, 3), classes=classes + 1)}, "other.pth")
    assert main(["evaluate", "other.pth", *words]) == 2
    assert "has not all that is to be measured" in capsys.readouterr().err


def test_the_order_of_published_answers_must_be_named(
    unilm, scenes: Path, chain: Path, train, capsys: pytest.CaptureFixture[str]
) -> None:
    words = vlbeit.load(chain / "runs/vl").tokenizer.vocab_size
    torch.save(unilm.vlmo(side=3, parts=("vqa",), words=words), "vlmo.pt")
    of_run = (f"text.tokenizer={chain / 'runs/vl'}", "task=vqa")
    data = (f"data.root={scenes}", "data=vqa_v2", "data.workers=0", "text.max_length=32")
    assert main(["evaluate", "vlmo.pt", *of_run, *data]) == 2
    assert "of which answers: task.answers=FILE names them" in capsys.readouterr().err
    Path("answers.json").write_text('["yes", "no", "1", "2", "red", "blue", "circle"]')
    assert main(["evaluate", "vlmo.pt", *of_run, *data, "task.answers=answers.json"]) == 0
    Path("short.json").write_text('["yes", "no", "1", "2", "red", "blue"]')
    assert main(["evaluate", "vlmo.pt", *of_run, *data, "task.answers=short.json"]) == 2
    assert "'num_answers': 7} there, {" in capsys.readouterr().err
    rows = json.loads(Path("runs/vlmo-vqa/vqa_details.json").read_text())
    assert len(rows) > 10 and {row["answer"] for row in rows} <= {"yes", "no", "1", "2", "red", "blue", "circle"}

    fine_tuned = ("stage=vl", *of_run, "init=vlmo.pt", "text.positions=196", "task.answers=other.json")
    Path("other.json").write_text('["circle", "purple", "yes"]')
    code, out, _ = train(*fine_tuned, "run=own")
    assert code == 0 and "its classifier of answers is left out" in out and "new (head answer)" in out
    code, out, _ = train(*fine_tuned, "run=named", "task.init_answers=answers.json")
    assert code == 0 and "left out" not in out and "new (" not in out
    code, _, err = train(*fine_tuned, "run=short", "task.init_answers=short.json")
    assert code == 1 and "head answer: a list of 6 labels for a classifier of width 7: give the right list" in err
    theirs = torch.load("vlmo.pt")["vqa_classifier.3.bias"]
    ours = load_file("named/checkpoint/model.safetensors")
    torch.testing.assert_close(ours["heads.answer.3.bias"][[0, 2]], theirs[[6, 0]])


def test_classes_of_others_are_matched_by_name(chain: Path, scenes: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """The same model with its classes in another order, as transformers may hold it, scores the same."""
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(chain / "runs/mim-classification"), "hub", "--to", "transformers"]) == 0
    words = ("task=classification", f"data.root={scenes / 'imagefolder'}", "data.workers=0")
    assert main(["evaluate", "hub", *words]) == 0
    before = json.loads(Path("runs/hub-classification/classification_details.json").read_text())

    state, config = load_file("hub/model.safetensors"), json.loads(Path("hub/config.json").read_text())
    state |= {name: state[name].flip(0).contiguous() for name in ("classifier.weight", "classifier.bias")}
    save_file(state, "hub/model.safetensors")
    names = [config["id2label"][str(row)] for row in range(len(config["id2label"]))][::-1]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: row for row, name in enumerate(names)}}
    Path("hub/config.json").write_text(json.dumps(config))
    assert main(["evaluate", "hub", *words]) == 0
    assert json.loads(Path("runs/hub-classification/classification_details.json").read_text()) == before

    config["id2label"] = {row: f"other {row}" for row in range(len(names))}
    Path("hub/config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["evaluate", "hub", *words]) == 0
    assert "note: no class has the same name there and here, so they go by their place" in capsys.readouterr().out
    config["id2label"] = {row: name if row else "another" for row, name in enumerate(names)}
    Path("hub/config.json").write_text(json.dumps(config))
    assert main(["evaluate", "hub", *words]) == 2
    assert f"{names[0]!r} is none of them" in capsys.readouterr().err


def test_one_table_for_all_is_not_made_of_many(train, unilm) -> None:
    torch.save({"model": unilm.beit(grid=(3, 3), classes=8)}, "beit.pth")
    code, out, _ = train("stage=mim", "stage.target=pixels", "init=beit.pth")
    said = next(line for line in out.splitlines() if line.startswith("starting from beit.pth: "))
    assert code == 0 and "rel_pos" in said.partition(" new (")[2].partition(")")[0]


def test_numbers_of_two_files_of_one_name_lie_apart() -> None:
    config = compose(["task=classification"]).config
    names = ("a/model.pth", "b/model.pth", "timm/beit.in22k_ft_in22k", "timm/beit.in22k_ft_in22k_in1k")
    folders = [str(folder_for(name, config)) for name in names]
    assert len({*folders}) == 4 and folders[0] == "runs/a--model-classification"
